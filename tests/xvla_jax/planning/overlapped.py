"""A program as TPU text has it where a gather runs beside other work.

Three fusions hold the same gather: one starts it, one does other work meanwhile and hands its
buffers on, one ends it. Its shard is bf16[2, 16] on each of 4 chips, 64 bytes. Beside it, a slice
of a bf16[8, 16] is fetched onto the chip, a quarter of it.
"""

from __future__ import annotations

from typing import Final

TEXT: Final = """
%start (s0: bf16[2,16]) -> (bf16[2,16], bf16[8,16], s32[2]) {
  %s0 = bf16[2,16]{1,0} parameter(0)
  %gather.1 = bf16[8,16]{1,0} all-gather(%s0), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %begun = (bf16[2,16]{1,0}, bf16[8,16]{1,0}, s32[2]{0:S(4)}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (m0: bf16[2,16], m1: bf16[8,16], m2: s32[2], m3: bf16[32]) -> (bf16[32], bf16[2,16], bf16[8,16], bf16[8,16], s32[2]) {
  %m0 = bf16[2,16]{1,0} parameter(0)
  %m1 = bf16[8,16]{1,0} parameter(1)
  %gather.2 = bf16[8,16]{1,0} all-gather(%m0), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  %m2 = s32[2]{0:S(4)} parameter(2)
  %m3 = bf16[32]{0} parameter(3)
  %more = bf16[32]{0} add(%m3, %m3)
  ROOT %both = (bf16[32]{0}, bf16[2,16]{1,0}, bf16[8,16]{1,0}, bf16[8,16]{1,0}, s32[2]{0:S(4)}) tuple(%more, %m0, %m1, %gather.2, %m2)
}

%done (d0: bf16[2,16], d1: bf16[8,16], d2: s32[2]) -> bf16[8,16] {
  %d0 = bf16[2,16]{1,0} parameter(0)
  %d1 = bf16[8,16]{1,0} parameter(1)
  %gather.3 = bf16[8,16]{1,0} all-gather(%d0), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  %d2 = s32[2]{0:S(4)} parameter(2)
  ROOT %ended = bf16[8,16]{1,0} custom-call(%d0, %d1, %gather.3, %d2), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (shard: bf16[2,16], x: bf16[32]) -> (bf16[32], bf16[2,16]) {
  %shard = bf16[2,16]{1,0} parameter(0)
  %x = bf16[32]{0} parameter(1)
  %a = (bf16[2,16]{1,0}, bf16[8,16]{1,0}, s32[2]{0:S(4)}) fusion(%shard), kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, calls=%start, metadata={op_name="start"}
  %a0 = bf16[2,16]{1,0} get-tuple-element(%a), index=0
  %a1 = bf16[8,16]{1,0} get-tuple-element(%a), index=1
  %a2 = s32[2]{0:S(4)} get-tuple-element(%a), index=2
  %b = (bf16[32]{0}, bf16[2,16]{1,0}, bf16[8,16]{1,0}, bf16[8,16]{1,0}, s32[2]{0:S(4)}) fusion(%a0, %a1, %a2, %x), kind=kOutput, output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {}), {3}: (1, {}), {4}: (2, {})}, calls=%meanwhile, metadata={op_name="meanwhile"}
  %b0 = bf16[32]{0} get-tuple-element(%b), index=0
  %b1 = bf16[2,16]{1,0} get-tuple-element(%b), index=1
  %b2 = bf16[8,16]{1,0} get-tuple-element(%b), index=3
  %b3 = s32[2]{0:S(4)} get-tuple-element(%b), index=4
  %c = bf16[8,16]{1,0} fusion(%b1, %b2, %b3), kind=kCustom, output_to_operand_aliasing={{}: (1, {})}, calls=%done, metadata={op_name="done"}
  %d = ((bf16[8,16]{1,0}), bf16[2,16]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%c), slice={[0:2], [0:16]}, metadata={op_name="slice"}
  %e = bf16[2,16]{1,0:S(1)} slice-done(%d)
  ROOT %r = (bf16[32]{0}, bf16[2,16]{1,0:S(1)}) tuple(%b0, %e)
}
"""  # noqa: E501
