"""Mixers: LoRA adapters on one base, mixed token by token (LoRA-Mixer, GLIDER).

The modules `gates`, `weights` and `vllm_plugin` import torch, safetensors and vllm alone, so that
they also work in vLLM's own environment, where nothing else of ours is installed.
"""
