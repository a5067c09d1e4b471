"""The memory forecast of a rank, and its budget."""

from __future__ import annotations

from dpeval.util.frozen import Frozen

ALLOWANCES = ("fragmentation", "runtime", "process", "workspace", "context", "allowance")


class Forecast(Frozen):
    """Forecast peak memory of the rank that needs the most, in bytes, by part."""

    total_bytes: int
    parts: dict[str, int]
    """At the peak: parameters, gradients, optimizer, buckets, activations, input, transient; and
    the allowances: fragmentation, runtime and process (CPU), or fragmentation, workspace and
    context (GPU); with source ``fit``, `allowance` replaces them. They add up to `total_bytes`."""
    source: str
    """``model`` (counted without data) or ``fit`` (a line through measured peaks)."""

    @property
    def counted_bytes(self) -> int:
        """The total without the allowances."""
        return self.total_bytes - sum(self.parts.get(name, 0) for name in ALLOWANCES)

    @property
    def needed_bytes(self) -> int:
        """The minimum memory that a run needs.

        Before CUDA's caching allocator runs out of memory, it returns unused memory to the device.
        Measured on an H200: ResNet50 with 73 images allocated 3,511 MiB and trained in 3,584 MiB;
        without the limit, fragmentation added 480 MiB.
        """
        is_gpu = "context" in self.parts
        return self.total_bytes - (self.parts.get("fragmentation", 0) if is_gpu else 0)

    def with_allowance_of(self, other: Forecast) -> Forecast:
        """The counted parts of this forecast with the allowances of `other`."""
        counted = {name: size for name, size in self.parts.items() if name not in ALLOWANCES}
        allowances = {name: size for name, size in other.parts.items() if name in ALLOWANCES}
        parts = counted | allowances
        return Forecast(total_bytes=sum(parts.values()), parts=parts, source=other.source)


class Budget(Frozen):
    """Memory that one rank may use, in bytes, and what sets this limit."""

    bytes: int
    source: str
