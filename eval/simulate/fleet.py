"""Simulated hardware: devices with budgets, and experts with sizes and load times."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experts.errors import DataError
from experts.residency import Device, Expert

GB = 10**9

DEVICES = 8
DEVICE_GB = 72.0
"""What an 80 GB GPU leaves for weights and KV caches."""

HOST_GB = 1000.0
LINK_GB_S = 20.0
"""Host memory to one GPU, and back: PCIe 4.0 x16 in practice."""

DISK_GB_S = 3.0
"""A read by one loading GPU from NVMe."""

EXPERTS = 150
SIZES_B = (1.5, 3.0, 7.0, 8.0, 8.0, 14.0)
"""Billions of parameters, two bytes each: in equal parts, in this order over and over."""

KV_SHARE = 0.2
"""KV cache of an expert, as a share of its weights."""


@dataclass(frozen=True)
class Fleet:
    devices: tuple[Device, ...]
    experts: tuple[Expert, ...]
    host_bytes: int
    bases: Mapping[str, str] = field(default_factory=dict)
    """Adapter, mixer or prompt -> the expert whose weights it stands on."""

    @property
    def capacity(self) -> int:
        """Bytes of all devices."""
        return sum(device.budget_bytes for device in self.devices)


class _DeviceEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=64)
    budget_gb: float = Field(gt=0)


class _ExpertEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=128)
    serves: list[str] = Field(default=[], max_length=5000)
    weights_gb: float = Field(gt=0)
    kv_gb: float | None = Field(default=None, ge=0)
    load_s: float | None = Field(default=None, ge=0)
    cold_load_s: float | None = Field(default=None, ge=0)
    park_s: float | None = Field(default=None, ge=0)


class _FleetFile(BaseModel):
    """Times that are not given are bytes over bandwidth. `serves` are adapters, mixers and prompts
    that stand on an expert, and need its weights alone."""

    model_config = ConfigDict(extra="forbid")

    devices: list[_DeviceEntry] = Field(min_length=1, max_length=256)
    experts: list[_ExpertEntry] = Field(min_length=1, max_length=5000)
    host_gb: float = Field(default=HOST_GB, ge=0)
    link_gb_s: float = Field(default=LINK_GB_S, gt=0)
    disk_gb_s: float = Field(default=DISK_GB_S, gt=0)


def default_fleet(names: Sequence[str] | None = None) -> Fleet:
    """Eight GPUs and 150 experts, or those that are named, of unequal sizes."""
    names = names or [f"expert-{i:03}" for i in range(EXPERTS)]
    sizes = [SIZES_B[i % len(SIZES_B)] * 2 for i in range(len(names))]
    return _fleet(
        _FleetFile(
            devices=[_DeviceEntry(name=f"gpu{i}", budget_gb=DEVICE_GB) for i in range(DEVICES)],
            experts=[
                _ExpertEntry(id=name, weights_gb=size)
                for name, size in zip(names, sizes, strict=True)
            ],
        )
    )


def read_fleet(path: Path) -> Fleet:
    """
    Raises:
        DataError: the file can't be read or describes no fleet.
    """
    try:
        content: Any = yaml.safe_load(path.read_text())
        file = _FleetFile.model_validate(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} can't be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {place or 'the file'}: {first['msg']}") from error
    for what, names in (
        ("device", [d.name for d in file.devices]),
        ("expert", [name for e in file.experts for name in (e.id, *e.serves)]),
    ):
        if len(set(names)) < len(names):
            raise DataError(f"{path}: two {what}s have the same name")
    return _fleet(file)


def _fleet(file: _FleetFile) -> Fleet:
    return Fleet(
        devices=tuple(Device(d.name, round(d.budget_gb * GB)) for d in file.devices),
        experts=tuple(_expert(entry, file) for entry in file.experts),
        host_bytes=round(file.host_gb * GB),
        bases={name: entry.id for entry in file.experts for name in entry.serves},
    )


def _expert(entry: _ExpertEntry, file: _FleetFile) -> Expert:
    def measured(seconds: float | None, gb_s: float) -> float:
        return entry.weights_gb / gb_s if seconds is None else seconds

    kv_gb = KV_SHARE * entry.weights_gb if entry.kv_gb is None else entry.kv_gb
    return Expert(
        id=entry.id,
        weight_bytes=round(entry.weights_gb * GB),
        kv_bytes=round(kv_gb * GB),
        load_s=measured(entry.load_s, file.link_gb_s),
        cold_load_s=measured(entry.cold_load_s, file.disk_gb_s),
        park_s=measured(entry.park_s, file.link_gb_s),
    )
