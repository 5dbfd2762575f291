"""`GET /v1/models`: compositions, experts and the encoder, as an OpenAI client lists them."""

from typing import Any

from composer.snapshots import View
from experts.errors import UnknownModel
from routers.encoders import Encoder


def embedding_model(encoder: Encoder) -> str:
    """The name under which the gateway's own encoder makes embeddings."""
    return encoder.id.partition(":")[0].lower()


def find_model(view: View, encoder: Encoder, name: str) -> dict[str, Any]:
    """One entry of the list.

    Raises:
        UnknownModel: there is no live composition and no expert of this name.
    """
    for entry in list_models(view, encoder)["data"]:
        if entry["id"] == name:
            return dict(entry)
    raise UnknownModel(
        f"there is no model '{name[:200]}': GET /v1/models lists what is", param="model"
    )


def list_models(view: View, encoder: Encoder) -> dict[str, Any]:
    """Compositions first, the encoder last; `composer` tells what an entry is."""
    entries = [
        {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "composer",
            "composer": {
                "kind": "composition",
                "version": live.record.version,
                "experts": list(live.experts),
                "categories": list(live.artefact.manifest.categories),
            },
        }
        for name, live in view.compositions.items()
    ] + [
        {
            "id": spec.id,
            "object": "model",
            "created": 0,
            "owned_by": "composer",
            "composer": {
                "kind": spec.kind,
                "base": spec.base,
                "params_b": spec.params_b,
                "context_length": spec.context_length,
                "capabilities": sorted(spec.capabilities),
                "instruction": spec.instruction,
            },
        }
        for spec in view.snapshot.experts.values()
    ]
    entries.append(
        {
            "id": embedding_model(encoder),
            "object": "model",
            "created": 0,
            "owned_by": "composer",
            "composer": {
                "kind": "encoder",
                "encoder": encoder.id,
                "dimensions": encoder.dimension,
                "interfaces": ["embeddings"],
            },
        }
    )
    return {"object": "list", "data": entries}
