"""A worker whose arithmetic is a hash, and whose KV remembers what it is the KV of.

The KV of position p is the hash of the salt's group and all tokens up to p, as it is in a transformer: what a layer
writes at p depends on everything before. To compute a position, every earlier position of its row must be in its block
with the right content, so a step that reads a block that was overwritten, never written, or that belongs to another
prefix or another group fails at once. The next token is a hash of all tokens, so any slip would also change outputs.
"""

from __future__ import annotations

from hashlib import blake2b

from policies.vocabulary import BLOCK_SIZE, Finish, NewRow, Request, Step, StepDone, WorkerSpec, unpack_tokens

EOS = 0


def state_of(previous: int, token: int) -> int:
    """The KV of a position, from that of the one before and its token."""
    return int.from_bytes(blake2b(b"%d,%d" % (previous, token), digest_size=8).digest(), "little")


def root_of(salt: bytes) -> int:
    """What stands before position 0: groups differ, so that a hit across them is seen."""
    return int.from_bytes(blake2b(salt, digest_size=8).digest(), "little")


def sampled(state: int, vocabulary: int) -> int:
    """The next token; `EOS` once in a while."""
    return state % vocabulary


def reference(request: Request, vocabulary: int) -> tuple[list[int], Finish]:
    """The outputs, without paging, batching or scheduling."""
    state = root_of(request.salt)
    for token in unpack_tokens(request.prompt):
        state = state_of(state, token)
    outputs: list[int] = []
    while len(outputs) < request.max_tokens:
        outputs.append(sampled(state, vocabulary))
        if outputs[-1] == EOS:
            return outputs, Finish.stop
        state = state_of(state, outputs[-1])
    return outputs, Finish.length


class Slot:
    def __init__(self, new: NewRow, root: int) -> None:
        self.new = new
        self.tokens = unpack_tokens(new.tokens)
        self.blocks = list(new.blocks)
        self.computed = new.computed
        self.finish = Finish.none
        self.states = [root]  # states[p]: what stands before position p
        for token in self.tokens:
            self.states.append(state_of(self.states[-1], token))


class ToyWorker:
    """Executes steps in order, and adds what it samples to `outputs`, by request and attempt."""

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        vocabulary: int,
        salts: dict[str, bytes],
        outputs: dict[tuple[str, int], list[int]],
    ) -> None:
        self.device: list[list[int | None]] = [[None] * BLOCK_SIZE for _ in range(spec.blocks)]
        self.host: list[list[int | None]] = [[None] * BLOCK_SIZE for _ in range(spec.host_blocks)]
        self.slots: list[Slot | None] = [None] * spec.slots
        self.vocabulary = vocabulary
        self.salts = salts
        self.outputs = outputs
        self.last = 0

    def execute(self, step: Step) -> StepDone:
        assert step.number == self.last + 1, f"step {step.number} after {self.last}"
        self.last = step.number
        for slot in step.drop:
            assert self.slots[slot] is not None, f"slot {slot} is dropped, but empty"
            self.slots[slot] = None
        for device, host in step.swap_out:
            self.host[host] = self.device[device][:]
        for host, device in step.swap_in:
            self.device[device] = self.host[host][:]
        for new in step.new:
            assert self.slots[new.slot] is None, f"slot {new.slot} is given twice"
            self.slots[new.slot] = Slot(new, root_of(self.salts[new.request]))
        for number, block in step.grown:
            row = self.slots[number]
            assert row is not None
            row.blocks.append(block)
        assert len(set(step.slots)) == len(step.slots)
        done: list[tuple[int, int, int]] = []
        for number, count in zip(step.slots, step.counts, strict=True):
            row = self.slots[number]
            assert row is not None, f"slot {number} runs, but is empty"
            if row.finish is not Finish.none:
                assert row.finish is Finish.stop, f"{row.new.request} runs after its last output"
                continue
            token = self._forward(row, count)
            if token is not None:
                done.append((number, token, self._emit(row, token)))
        return StepDone(
            step.number, [d[0] for d in done], [d[1] for d in done], [d[2] for d in done], 0.01 * len(step.slots)
        )

    def _forward(self, row: Slot, count: int) -> int | None:
        end = row.computed + count
        assert end <= len(row.tokens), "more tokens than are known"
        assert end <= len(row.blocks) * BLOCK_SIZE, "no block for a token"
        for p in range(row.computed, end):
            self.device[row.blocks[p // BLOCK_SIZE]][p % BLOCK_SIZE] = row.states[p + 1]
        for p in range(end):
            content = self.device[row.blocks[p // BLOCK_SIZE]][p % BLOCK_SIZE]
            assert content == row.states[p + 1], f"{row.new.request}: wrong KV at position {p} of {end}"
        row.computed = end
        return sampled(row.states[end], self.vocabulary) if end == len(row.tokens) else None

    def _emit(self, row: Slot, token: int) -> int:
        row.tokens.append(token)
        row.states.append(state_of(row.states[-1], token))
        self.outputs.setdefault((row.new.request, row.new.attempt), []).append(token)
        finish = Finish.none
        if token == EOS:
            finish = Finish.stop
        elif len(row.tokens) == row.new.prompt_tokens + row.new.max_tokens:
            finish = Finish.length
        row.finish = finish
        return int(finish)
