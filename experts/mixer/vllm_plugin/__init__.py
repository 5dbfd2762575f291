"""Mixers inside stock vLLM: an entry point of the group `vllm.general_plugins`.

vLLM loads it in the API server, the engine and the workers alike. It registers one architecture for
every family of bases; a mixer's checkpoint names it in its config.json. Nothing here imports more
than torch, safetensors and vllm, so that the distribution can be installed with `--no-deps` into
vLLM's own environment. How a mixer is mixed is in `experts.mixer.gates`, the same for all engines.
"""

PREFIX = "LoRAMixer"
SECTION = "lora_mixer"
FAMILIES = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
)


def register() -> None:
    """Make the mixers' architectures known to this process of vLLM."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from experts.mixer.vllm_plugin.settings import MixerConfig

    for family in FAMILIES:
        name = f"{PREFIX}{family}"
        ModelRegistry.register_model(name, f"{__name__}.model:{name}")
        MODELS_CONFIG_MAP[name] = MixerConfig
