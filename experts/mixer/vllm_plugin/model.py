"""The architectures: vLLM's own models, whose routed linears add a term to what they compute.

Nothing of a model is copied. After vLLM has built it, the class of each routed linear is exchanged
for one that also adds the term; the model's forward first brings the priors to the tokens.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.models.gemma import GemmaForCausalLM
from vllm.model_executor.models.gemma2 import Gemma2ForCausalLM
from vllm.model_executor.models.gemma3 import Gemma3ForCausalLM
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from experts.mixer.vllm_plugin import SECTION
from experts.mixer.vllm_plugin.kernel import FusedTerm, Gating, InputPart, Slot
from experts.mixer.vllm_plugin.priors import Priors, install
from experts.mixer.vllm_plugin.settings import serve

_TENSORS = "mixer."


class _Routed:
    """Mixed into the class of a routed linear, before its own."""

    routed: FusedTerm
    priors: Priors
    adds: bool

    def forward(self, input_: Tensor) -> Any:
        result = super().forward(input_)  # type: ignore[misc]
        if not self.adds:
            return result
        tokens = input_.shape[0]
        term = self.routed(
            input_,
            self.priors.prior[:tokens],
            self.priors.allowed[:tokens],
            tensor_model_parallel_all_reduce,
        )
        if isinstance(result, tuple):
            return result[0] + term.to(result[0].dtype), *result[1:]
        return result + term.to(result.dtype)


class Mixing:
    """Mixed into a model's class, before its own."""

    packed_modules_mapping: dict[str, list[str]]

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **more: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **more)  # type: ignore[call-arg]
        section: dict[str, Any] = getattr(vllm_config.model_config.hf_config, SECTION)
        # Workers get the configuration ready made, so that its hook did not run here.
        serve(len(section["open"]))
        scheduler = vllm_config.scheduler_config
        tables = Priors(
            section["open"],
            requests=scheduler.max_num_seqs,
            tokens=max(scheduler.max_num_batched_tokens, vllm_config.model_config.max_model_len),
        )
        self.priors = install(tables)
        self.terms = dict(self._route(section))

    def _route(self, section: dict[str, Any]) -> Iterator[tuple[str, FusedTerm]]:
        """Exchange the classes of the routed linears; yields their terms by name."""
        assert isinstance(self, nn.Module)
        gating = Gating(
            kind=section["gate"],
            experts=len(section["open"]),
            top_k=section["top_k"],
            top_p=section["top_p"],
            temperature=section["temperature"],
        )
        ranks: dict[str, int] = section["ranks"]
        modules = dict(self.named_modules())
        for name, projections in _grouped(ranks, self.packed_modules_mapping).items():
            linear = modules.get(name)
            if not isinstance(linear, ColumnParallelLinear | RowParallelLinear):
                raise ValueError(f"the base has no linear {name}: is the mixer for another base?")
            yield name, _exchange(linear, projections, section, gating, self.priors)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **more: Any,
    ) -> Any:
        if not self.priors.by_runner:
            self.priors.spread(_starts(), positions.shape[-1])
        return super().forward(  # type: ignore[misc]
            input_ids, positions, intermediate_tensors, inputs_embeds, **more
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Take the mixer's tensors, before the base's own names are changed, and leave the rest.

        Raises:
            ValueError: a tensor that config.json tells of is not in the checkpoint.
        """
        ours: dict[str, Tensor] = {}

        def others() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights:
                if name.startswith(_TENSORS):
                    ours[name.removeprefix(_TENSORS)] = tensor
                else:
                    yield name, tensor

        loaded: set[str] = super().load_weights(others())  # type: ignore[misc]
        for name, term in self.terms.items():
            try:
                term.fill(ours)
            except KeyError as error:
                raise ValueError(
                    f"the checkpoint lacks the tensor mixer.{error.args[0]} of {name}: write it "
                    "again with `coe mixer export`"
                ) from error
        return loaded | {_TENSORS + name for name in ours}

    @staticmethod
    def get_model_state_cls() -> type[Any]:
        """For vLLM's second model runner, which tells of requests by another way."""
        from experts.mixer.vllm_plugin.second_runner import MixerModelState

        return MixerModelState


def _grouped(
    ranks: dict[str, int], packed: dict[str, list[str]]
) -> dict[str, list[tuple[str, int]]]:
    """The projections of each vLLM linear, in the order in which it holds them; those that no
    expert adapts have rank 0."""
    parent_of = {leaf: whole for whole, leaves in packed.items() for leaf in leaves}
    groups: dict[str, list[tuple[str, int]]] = {}
    for module in ranks:
        parent, _, leaf = module.rpartition(".")
        whole = parent_of.get(leaf, leaf)
        leaves = packed.get(whole, [leaf])
        names = [f"{parent}.{one}" for one in leaves]
        groups[f"{parent}.{whole}"] = [(one, ranks.get(one, 0)) for one in names]
    return groups


def _exchange(
    linear: Any,
    projections: list[tuple[str, int]],
    section: dict[str, Any],
    gating: Gating,
    priors: Priors,
) -> FusedTerm:
    """Give a linear its routed term, in the layout of this rank."""
    shared = section["scope"] == "layer"
    slots = [
        Slot(name, 0 if shared else number, ranks, start, length)
        for number, ((name, ranks), (start, length)) in enumerate(
            zip(projections, _outputs(linear), strict=True)
        )
    ]
    width = linear.input_size
    part = InputPart(width, 0, width)
    if isinstance(linear, RowParallelLinear):
        length = linear.input_size_per_partition
        part = InputPart(width, get_tensor_model_parallel_rank() * length, length)
    device = next(linear.parameters()).device
    # Products this small are quicker in float32 than in bfloat16 on a CPU.
    dtype = torch.float32 if device.type == "cpu" else linear.params_dtype
    linear.routed = FusedTerm(gating, slots, part, dtype).to(device)
    linear.priors = priors
    # Where others sum this linear's output over the ranks, one of them adds the term.
    summed_later = isinstance(linear, RowParallelLinear) and not linear.reduce_results
    linear.adds = not summed_later or get_tensor_model_parallel_rank() == 0
    linear.__class__ = type(f"Routed{type(linear).__name__}", (_Routed, type(linear)), {})
    routed: FusedTerm = linear.routed
    return routed


def _outputs(linear: Any) -> list[tuple[int, int]]:
    """Where this rank's part of each projection's output begins, and how long it is."""
    rank, size = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    if isinstance(linear, QKVParallelLinear):
        queries = linear.num_heads * linear.head_size
        keys, values = (
            linear.num_kv_heads * width for width in (linear.head_size, linear.v_head_size)
        )
        own = rank // linear.num_kv_head_replicas
        return [(rank * queries, queries), (own * keys, keys), (own * values, values)]
    if isinstance(linear, MergedColumnParallelLinear):
        lengths = [output // size for output in linear.output_sizes]
        return [(rank * length, length) for length in lengths]
    if isinstance(linear, ColumnParallelLinear):
        length = linear.output_size_per_partition
        return [(rank * length, length)]
    return [(0, linear.output_size)]


def _starts() -> Tensor | None:
    """Where each request's tokens begin in this step; None in a trial run."""
    if not is_forward_context_available():
        return None
    metadata = get_forward_context().attn_metadata
    if not metadata:
        return None
    starts = None
    if isinstance(metadata, dict):
        starts = getattr(next(iter(metadata.values())), "query_start_loc", None)
    if starts is None:
        # Going on would give requests the priors of others.
        raise RuntimeError("this attention backend does not tell where requests begin")
    assert isinstance(starts, Tensor)
    return starts


class LoRAMixerLlamaForCausalLM(Mixing, LlamaForCausalLM):
    """Llama, Mistral, SmolLM."""


class LoRAMixerQwen2ForCausalLM(Mixing, Qwen2ForCausalLM):
    """Qwen 2 and 2.5."""


class LoRAMixerQwen3ForCausalLM(Mixing, Qwen3ForCausalLM):
    """Qwen 3."""


class LoRAMixerGemmaForCausalLM(Mixing, GemmaForCausalLM):
    """Gemma."""


class LoRAMixerGemma2ForCausalLM(Mixing, Gemma2ForCausalLM):
    """Gemma 2."""


class LoRAMixerGemma3ForCausalLM(Mixing, Gemma3ForCausalLM):
    """Gemma 3."""
