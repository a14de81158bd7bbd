"""Who sits in which slot, and what a step makes of it: the bookkeeping of every engine, mock included.

A step is first planned against the table, without changing it, and committed only once the device took it. So a refused
step leaves no trace. No torch and no numpy: rows are few, and the mock device runs without either.

Two integers describe a slot: `known` tokens (prompt and outputs, those still on the device included) and `computed`
tokens (their KV is in blocks, once the launched steps are through). A row of n tokens takes `computed` to computed + n;
where that reaches `known`, the row samples one more. What a slot is over with is learnt when results are collected, so
a slot may be over while later steps, already launched or sent, still have rows for it: overruns.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gpu_worker.errors import IntegrityError, StepRefused
from policies.vocabulary import BLOCK_SIZE, Finish, NewRow, Sampling, Step

__all__ = ["Row", "Slot", "SlotTable", "StepPlan"]


@dataclass(slots=True, eq=False)
class Slot:
    """One running request."""

    index: int
    request: str
    attempt: int
    gateway: str
    prompt_tokens: int
    max_tokens: int
    sampling: Sampling
    stop_ids: frozenset[int]
    blocks: list[int]
    computed: int
    known: int
    finish: Finish = Finish.none
    live: bool = True

    @property
    def plain_greedy(self) -> bool:
        """Whether the most likely token is the answer, whatever came before."""
        s = self.sampling
        return (
            s.temperature <= 0
            and s.presence_penalty == 0
            and s.frequency_penalty == 0
            and s.repetition_penalty == 1
            and not s.logit_bias
            and s.min_tokens <= 0
        )


@dataclass(slots=True)
class Row:
    """`count` tokens of a slot from position `start` on. If it `samples`, the token is at position start + count."""

    slot: Slot
    start: int
    count: int
    samples: bool


@dataclass(slots=True)
class StepPlan:
    """What a step does, checked against the table but not yet applied to it."""

    step: Step
    dropped: list[Slot]
    entered: list[tuple[Slot, NewRow]]
    grown: list[tuple[Slot, int]]  # (slot, device block), in order
    rows: list[Row]  # without rows of slots that are over
    tokens: int


@dataclass(slots=True)
class _Owner:
    slot: Slot
    logical: int  # index in the owner's block table


@dataclass(slots=True)
class SlotTable:
    """Slots, and who may write which block.

    A block is written by one slot, its owner, at most; others may hold it once it is full (a shared prefix).
    """

    slots: int
    blocks: int
    host_blocks: int
    tokens_per_step: int
    max_context: int
    vocab_size: int
    eos_ids: frozenset[int] = frozenset()
    table: list[Slot | None] = field(init=False)
    number: int = field(init=False, default=0)
    _holders: dict[int, int] = field(init=False, default_factory=dict)
    _owners: dict[int, _Owner] = field(init=False, default_factory=dict)
    _on_host: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next step is number 1."""
        for slot in getattr(self, "table", []):
            if slot is not None:
                slot.live = False
        self.table = [None] * self.slots
        self.number = 0
        self._holders.clear()
        self._owners.clear()
        self._on_host.clear()

    def plan(self, step: Step) -> StepPlan:
        """Check a step and say what it does. The table stays as it is, but for the step's number.

        :raises StepRefused: it breaks the protocol; the text names the step, the value and the rule.
        """
        expected, self.number = self.number + 1, step.number
        if step.number != expected:
            raise StepRefused(f"protocol: step {step.number} came where {expected} was due; numbers are consecutive")
        return _Planner(self, step).plan()

    def commit(self, plan: StepPlan) -> None:
        """Apply a plan: the device took the step."""
        for slot in plan.dropped:
            self._release(slot)
        for _, host in plan.step.swap_out:
            self._on_host.add(host)
        for slot, _ in plan.entered:
            self.table[slot.index] = slot
            for logical, block in enumerate(slot.blocks):
                self._hold(slot, logical, block)
        for slot, block in plan.grown:
            self._hold(slot, len(slot.blocks), block)
            slot.blocks.append(block)
        for row in plan.rows:
            row.slot.computed = row.start + row.count
            if row.samples:
                row.slot.known += 1

    def _hold(self, slot: Slot, logical: int, block: int) -> None:
        held = self._holders.get(block, 0)
        self._holders[block] = held + 1
        if not held:
            self._owners[block] = _Owner(slot, logical)

    def _release(self, slot: Slot) -> None:
        slot.live = False
        self.table[slot.index] = None
        for block in slot.blocks:
            held = self._holders[block] - 1
            if held:
                self._holders[block] = held
            else:
                del self._holders[block]
                del self._owners[block]

    def finish(self, row: Row, token: int) -> Finish:
        """Whether `token`, just sampled by `row`, is its request's last; the slot is marked accordingly."""
        slot = row.slot
        outputs = row.start + row.count + 1 - slot.prompt_tokens
        if token in slot.stop_ids and outputs > slot.sampling.min_tokens:
            slot.finish = Finish.stop
        elif outputs >= slot.max_tokens:
            slot.finish = Finish.length
        return slot.finish

    def writable(self, block: int) -> bool:
        """Whether some slot may still write to the block."""
        owner = self._owners.get(block)
        return owner is not None and owner.slot.live and owner.slot.computed < (owner.logical + 1) * BLOCK_SIZE

    def held(self) -> set[int]:
        """Blocks that some slot holds."""
        return set(self._holders)

    def check_integrity(self) -> None:
        """:raises IntegrityError: holders do not add up, or a slot's blocks do not cover its computed tokens."""
        count: dict[int, int] = {}
        for index, slot in enumerate(self.table):
            if slot is None:
                continue
            if slot.index != index or not slot.live:
                raise IntegrityError(f"slot {index} holds a row that says {slot.index}, live {slot.live}")
            if len(slot.blocks) * BLOCK_SIZE < slot.computed or slot.computed > slot.known:
                raise IntegrityError(
                    f"slot {index}: {slot.computed} computed of {slot.known} known tokens in {len(slot.blocks)} blocks"
                )
            for block in slot.blocks:
                count[block] = count.get(block, 0) + 1
        if count != self._holders:
            wrong = {b for b in count.keys() | self._holders.keys() if count.get(b) != self._holders.get(b)}
            raise IntegrityError(f"holders of blocks {sorted(wrong)[:8]} do not match the block tables")


class _Planner:
    """One step's check. Keeps what the step changes beside the table until it is committed."""

    def __init__(self, table: SlotTable, step: Step) -> None:
        self.table = table
        self.step = step
        self.current: dict[int, Slot | None] = {}  # slots that the step changes
        self.freed: dict[int, int] = {}  # holders that the drops take from a block
        self.taken: set[int] = set()  # blocks that the step gives to a slot to write
        self.growing: dict[int, int] = {}  # slot: blocks that the step appends to its table

    def refuse(self, text: str) -> StepRefused:
        return StepRefused(f"protocol: step {self.step.number} {text}")

    def plan(self) -> StepPlan:
        step = self.step
        dropped = [self.drop(index) for index in step.drop]
        self.check_swaps()
        entered = [(self.enter(new), new) for new in step.new]
        grown = [self.grow(index, block) for index, block in step.grown]
        rows, tokens = self.rows()
        return StepPlan(step, dropped, entered, grown, rows, tokens)

    def slot(self, index: int, verb: str) -> Slot:
        slot = self.current[index] if index in self.current else self.at(index, verb)
        if slot is None:
            raise self.refuse(f"{verb} slot {index}, which is empty")
        return slot

    def at(self, index: int, verb: str) -> Slot | None:
        if not 0 <= index < self.table.slots:
            raise self.refuse(f"{verb} slot {index}; there are {self.table.slots}")
        return self.table.table[index]

    def drop(self, index: int) -> Slot:
        slot = self.slot(index, "drops")
        self.current[index] = None
        for block in slot.blocks:
            self.freed[block] = self.freed.get(block, 0) + 1
        return slot

    def holders(self, block: int) -> int:
        return self.table._holders.get(block, 0) - self.freed.get(block, 0)

    def device_block(self, block: int, verb: str) -> None:
        if not 0 <= block < self.table.blocks:
            raise self.refuse(f"{verb} device block {block}; there are {self.table.blocks}")

    def check_swaps(self) -> None:
        written = set()
        for block, host in self.step.swap_out:
            self.device_block(block, "swaps out")
            if not 0 <= host < self.table.host_blocks:
                raise self.refuse(f"swaps out to host block {host}; there are {self.table.host_blocks}")
            if host in written:
                raise self.refuse(f"swaps out to host block {host} twice")
            written.add(host)
        filled = set()
        for host, block in self.step.swap_in:
            self.device_block(block, "swaps in to")
            if host not in self.table._on_host and host not in written:
                raise self.refuse(f"swaps in host block {host}, which was never written")
            if self.holders(block) or block in filled:
                raise self.refuse(f"swaps in to device block {block}, which is in use")
            filled.add(block)

    def enter(self, new: NewRow) -> Slot:
        name = f"enters request {new.request!r}"
        if (self.current[new.slot] if new.slot in self.current else self.at(new.slot, "enters")) is not None:
            raise self.refuse(f"{name} into slot {new.slot}, which is taken")
        known = len(new.tokens) // 4
        if not 0 < new.prompt_tokens <= known:
            raise self.refuse(f"{name} with {new.prompt_tokens} prompt tokens of {known}")
        if not 0 <= new.computed < known:
            raise self.refuse(f"{name} with {new.computed} of {known} tokens computed; the last must be left")
        if new.prompt_tokens + new.max_tokens > self.table.max_context:
            raise self.refuse(
                f"{name} with {new.prompt_tokens} + {new.max_tokens} tokens; a context holds {self.table.max_context}"
            )
        if known - new.prompt_tokens >= new.max_tokens:
            raise self.refuse(f"{name}, which has all its {new.max_tokens} outputs")
        self.check_length(new.slot, len(new.blocks))
        if len(new.blocks) * BLOCK_SIZE < new.computed:
            raise self.refuse(f"{name} with {new.computed} computed tokens in {len(new.blocks)} blocks")
        for logical, block in enumerate(new.blocks):
            if (logical + 1) * BLOCK_SIZE <= new.computed:
                self.share(block)
            else:
                self.take(block)
        stop = frozenset(new.sampling.stop_token_ids)
        if new.sampling.ignore_eos:
            # With no model to say which of them are EOS (the mock), none of them stops.
            stop = stop - self.table.eos_ids if self.table.eos_ids else frozenset()
        slot = Slot(
            index=new.slot,
            request=new.request,
            attempt=new.attempt,
            gateway=new.gateway,
            prompt_tokens=new.prompt_tokens,
            max_tokens=new.max_tokens,
            sampling=new.sampling,
            stop_ids=stop,
            blocks=list(new.blocks),
            computed=new.computed,
            known=known,
        )
        self.current[new.slot] = slot
        return slot

    def share(self, block: int) -> None:
        self.device_block(block, "shares")
        if block in self.taken or (self.holders(block) and self.table.writable(block)):
            raise self.refuse(f"shares device block {block}, which is still being written")

    def take(self, block: int) -> None:
        self.device_block(block, "writes to")
        if block in self.taken or self.holders(block):
            raise self.refuse(f"gives device block {block} to a slot to write, but another holds it")
        self.taken.add(block)

    def grow(self, index: int, block: int) -> tuple[Slot, int]:
        slot = self.slot(index, "grows")
        self.take(block)
        self.growing[index] = self.growing.get(index, 0) + 1
        self.check_length(index, len(slot.blocks) + self.growing[index])
        return slot, block

    def check_length(self, index: int, blocks: int) -> None:
        most = -(-self.table.max_context // BLOCK_SIZE) + 1
        if blocks > most:
            raise self.refuse(f"gives slot {index} {blocks} blocks; a context of {self.table.max_context} takes {most}")

    def rows(self) -> tuple[list[Row], int]:
        step = self.step
        if len(step.slots) != len(step.counts):
            raise self.refuse(f"has {len(step.slots)} slots but {len(step.counts)} counts")
        rows, tokens, seen = [], 0, set()
        for index, count in zip(step.slots, step.counts, strict=True):
            slot = self.slot(index, "runs")
            if index in seen or count < 1:
                raise self.refuse(f"runs {count} tokens of slot {index}" + (" a second time" if index in seen else ""))
            seen.add(index)
            tokens += count
            # A slot that an earlier result ended, or that has all its outputs on the way, gets nothing more.
            if slot.finish or slot.known - slot.prompt_tokens >= slot.max_tokens:
                continue
            end = slot.computed + count
            if end > slot.known:
                raise self.refuse(
                    f"runs {count} tokens of slot {index} from {slot.computed}, but {slot.known} are known"
                )
            if end > (len(slot.blocks) + self.growing.get(index, 0)) * BLOCK_SIZE:
                raise self.refuse(f"runs slot {index} to token {end} in {len(slot.blocks)} blocks")
            rows.append(Row(slot, slot.computed, count, end == slot.known))
        if tokens > self.table.tokens_per_step:
            raise self.refuse(f"runs {tokens} tokens; {self.table.tokens_per_step} are the most")
        return rows, tokens
