"""Rows for the commands that pages show: what runs each of them for real, on something small."""

from __future__ import annotations

SET_UP = "scripts/setup.sh"  # run by `make`, so by every continuous integration
CI = ".ci/run"

# beginning of a command -> test, or script of continuous integration, that runs it
RUN_BY = {
    "make demo": "tests/scripts/test_quickstart.py",
    "make test": CI,
    "make test-newer": CI,
    "make docs": "Makefile",
    "make format": "Makefile",
    "make setup": "Makefile",
    "pip install -c requirements/constraints.txt": SET_UP,
    "bash scripts/setup.sh": "Makefile",
    "python -m pytest": "Makefile",
    "python -m docs.oxe_table": "tests/docs/test_oxe_table.py",
    "python -m tests.fake_gcs": "tests/scripts/places/test_files.py",
    "python -m scripts.build_rlds": "tests/scripts/test_build_rlds.py",
    "python -m scripts.certify_sampler": "tests/scripts/test_certify_sampler.py",
    "python -m scripts.check_equivalence": "tests/scripts/test_check_equivalence.py",
    "python -m scripts.compare_client": "tests/scripts/test_compare_client.py",
    "python -m scripts.compare_results": "tests/scripts/test_results.py",
    "python -m scripts.convert_checkpoint": "tests/scripts/test_convert_checkpoint.py",
    "python -m scripts.convert_libero": "tests/scripts/test_convert_libero.py",
    "python -m scripts.count_frames": "tests/scripts/test_count_frames.py",
    "python -m scripts.doctor": "tests/scripts/test_doctor.py",
    "python -m scripts.evaluate": "tests/scripts/test_evaluate.py",
    "python -m scripts.inspect_data": "tests/scripts/test_inspect_data.py",
    "python -m scripts.latency_curve": "tests/scripts/test_latency_curve.py",
    "python -m scripts.export_program": "tests/scripts/test_export_program.py",
    "python -m scripts.golden_frame": "tests/scripts/test_simulator_python.py",
    "python -m scripts.make_random_checkpoint": "tests/scripts/test_make_random_checkpoint.py",
    "python -m scripts.merge_results": "tests/scripts/test_results.py",
    "python -m scripts.new_robot": "tests/scripts/test_new_robot.py",
    "python -m scripts.plan": "tests/scripts/test_plan.py",
    "python -m scripts.prompt": "tests/scripts/test_prompt.py",
    "python -m scripts.record_demos": "tests/eval/recording/test_demonstrations.py",
    "python -m scripts.run_summary": "tests/scripts/test_run_summary.py",
    "python -m scripts.serve": "tests/xvla_jax/serving/test_server_process.py",
    "python -m scripts.verify_receipt": "tests/scripts/test_results.py",
    "python -m scripts.train": "tests/scripts/test_train.py",
}

# word of a page that stands for a value (a regular expression) -> a value that a flag takes
VALUES = {
    r"configs/X\.py": "configs/debug.py",
    r"\{hf,[a-z,-]+\}": "hf",
    r"NAME_OR_MIXTURE|(?<=--data=)NAME": "libero_demos",
    r"=MODE\b": "=pad",
    r"=N\b": "=1",
    r"=I\b": "=0",
}
