"""``--verify-kernels``: the fast kernels against the reference on the first batches of a training phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from zoominnet.data import Batch
from zoominnet.engine.watchers.interface import Watched, Watcher
from zoominnet.errors import EXIT_KERNEL_MISMATCH, UserError
from zoominnet.kernels.verify import Difference, KernelVerifier


class KernelMismatchError(UserError):
    """A fast kernel gave another result than the reference."""

    exit_status = EXIT_KERNEL_MISMATCH


class KernelCheck(Watcher):
    """Compares every call of a fast kernel with the reference during the first steps, then says what it saw."""

    def __init__(self, phase: Watched) -> None:
        super().__init__(phase)
        self.watched = self.flips = 0
        self.batches: int | None = None
        self.calls: Counter[str] = Counter()
        self.greatest: Difference | None = None

    @contextmanager
    def around_step(self, step: int, batch: Batch) -> Iterator[None]:
        """Raises KernelMismatchError at a difference, or where there is nothing to compare."""
        if self.batches is None:  # of what is left of a resumed run
            self.batches = min(self.phase.config.verify_kernels, self.phase.total_steps - step)
        if self.watched >= self.batches:
            yield
            return
        with KernelVerifier() as verifier:
            yield
        where = f"--verify-kernels: {self.phase.name} step {step + 1} (images {[t['image_id'] for t in batch.targets]})"
        if verifier.mismatches:
            first = verifier.mismatches[0]
            worst = verifier.greatest[first.operator, first.output]
            others = sorted({difference.operator for difference in verifier.mismatches} - {worst.operator})
            also = f" (as do {', '.join(others)})" if others else ""
            raise KernelMismatchError(
                f"{where}: {worst}{also}; train with --no-fused-kernels, in a new --out, and report this line"
            )
        if not verifier.calls:
            raise KernelMismatchError(
                f"{where}: no fast kernel was called, so none could be verified; report this line"
            )
        self.watched += 1
        self.calls += verifier.calls
        self.flips += verifier.flips
        self.greatest = max(
            *verifier.greatest.values(), *([self.greatest] if self.greatest else []), key=lambda each: each.value
        )
        if self.watched == self.batches:
            self._report(self.greatest)

    def _report(self, greatest: Difference) -> None:
        difference = f"max difference {greatest.value:.2g}"
        if greatest.value:
            difference += f" ({greatest.operator}: {greatest.output}, tolerance {greatest.tolerance:.2g})"
        calls = ", ".join(f"{operator} {count}" for operator, count in sorted(self.calls.items()))
        self.phase.console.print(
            f"{self.phase.name}: kernels verified against the reference on the first {self.watched} batches: {difference}; "
            f"{self.flips} mask cells decided by rounding; calls: {calls}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
