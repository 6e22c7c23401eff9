"""What is on disk: safetensors, Orbax, LeRobot's and PEFT's folders, and PyTorch's names.

``xvla_jax.pretrained`` and ``xvla_jax.lora`` are the ways in; nothing here runs the model.
"""
