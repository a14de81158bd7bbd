"""Text comes out of tokens whole, whatever the text and however its tokens are cut."""

from __future__ import annotations

import pytest
from edge_support import byte_level_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from gateway.text.detokenize import ByteDetokenizer, Detokenizer, WindowDetokenizer, byte_table
from gateway.text.tokenizer import ModelText


def sentencepiece_like() -> Tokenizer:
    """A vocabulary with ▁ for spaces and bytes to fall back on, as Llama 2 and Mistral have."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "a",
        "b",
        "c",
        "é",
        "▁a",
        "ab",
        "bc",
    ]
    merges = [("▁", "a"), ("a", "b"), ("b", "c")]
    tokenizer = Tokenizer(
        models.BPE({piece: index for index, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def metaspace() -> Tokenizer:
    """A vocabulary whose decoder is Metaspace."""
    pieces = ["<unk>", "▁", *"abcdé", "▁a", "ab"]
    tokenizer = Tokenizer(
        models.BPE({piece: index for index, piece in enumerate(pieces)}, [("▁", "a"), ("a", "b")], unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


BYTE_LEVEL = byte_level_tokenizer()
BYTE_LEVEL.add_tokens([AddedToken("<tool é>", special=False, normalized=False)])
PIECES = sentencepiece_like()
META = metaspace()


def streams(name: str) -> tuple[Tokenizer, Detokenizer]:
    """A tokenizer and a fresh stream of its text."""
    if name == "bytes":
        return BYTE_LEVEL, ByteDetokenizer(byte_table(BYTE_LEVEL, {0, 1}))
    if name == "window over bytes":  # the general way must be right for these too
        return BYTE_LEVEL, WindowDetokenizer(BYTE_LEVEL, frozenset({0, 1}))
    if name == "pieces":
        return PIECES, WindowDetokenizer(PIECES, frozenset({0, 1, 2}))
    return META, WindowDetokenizer(META, frozenset())


def cut(tokens: list[int], cuts: list[int]) -> list[list[int]]:
    """The tokens in runs of the given lengths, repeated."""
    runs, at, turn = [], 0, 0
    while at < len(tokens):
        size = cuts[turn % len(cuts)]
        runs.append(tokens[at : at + size])
        at, turn = at + size, turn + 1
    return runs


TEXT = st.text(st.characters(codec="utf-8"), max_size=60)
CUTS = st.lists(st.integers(1, 5), min_size=1, max_size=6)


@pytest.mark.parametrize("name", ["bytes", "window over bytes", "pieces"])
@given(text=TEXT, cuts=CUTS)
@example(text="😀é日本語" * 5, cuts=[1])
@example(text="a�b", cuts=[1])
@example(text="  a  b ", cuts=[1])
@example(text="�", cuts=[1])
@example(text="👩‍👩‍👧‍👦 zoë", cuts=[2, 1])
def test_any_text_in_any_split_is_the_full_decode(name: str, text: str, cuts: list[int]) -> None:
    """The pieces add up to what decoding everything at once gives, which is the text."""
    tokenizer, stream = streams(name)
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = [stream.feed(run) for run in cut(tokens, cuts)]
    whole = "".join(pieces) + stream.finish()
    assert whole == tokenizer.decode(tokens)
    assert whole == text
    if "�" not in text:
        assert not any("�" in piece for piece in pieces)


@given(text=st.text("ab cdé", max_size=40), cuts=CUTS)
def test_metaspace_in_any_split_is_the_full_decode(text: str, cuts: list[int]) -> None:
    """So it is for a decoder that knows nothing of bytes."""
    tokenizer, stream = streams("metaspace")
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(map(stream.feed, cut(tokens, cuts))) + stream.finish() == tokenizer.decode(tokens)


@given(tokens=st.lists(st.integers(2, BYTE_LEVEL.get_vocab_size() - 1), max_size=40), cuts=CUTS)
def test_any_tokens_of_a_byte_level_vocabulary_are_the_full_decode(tokens: list[int], cuts: list[int]) -> None:
    """Even where they are no text at all: a model may draw anything."""
    stream = streams("bytes")[1]
    assert "".join(map(stream.feed, cut(tokens, cuts))) + stream.finish() == BYTE_LEVEL.decode(tokens)


@pytest.mark.parametrize("name", ["bytes", "window over bytes", "pieces"])
def test_special_tokens_are_no_text(name: str) -> None:
    """They are skipped wherever they are, and do not disturb the characters around them."""
    tokenizer, stream = streams(name)
    tokens = tokenizer.encode("é😀", add_special_tokens=False).ids
    mixed = [1, *tokens[:-1], 1, 1, tokens[-1], 1]
    assert "".join(stream.feed([token]) for token in mixed) + stream.finish() == "é😀"


@pytest.mark.parametrize("name", ["bytes", "pieces"])
def test_what_never_becomes_a_character_is_not_withheld_for_long(name: str) -> None:
    """A run of bytes that is no text comes out as U+FFFD within a few tokens, not at the end of the answer."""
    tokenizer, stream = streams(name)
    half = tokenizer.token_to_id("<0xC3>" if name == "pieces" else "Ã")
    assert half is not None
    assert "�" in "".join(stream.feed([half]) for _ in range(12))


def test_ids_beyond_the_vocabulary_have_no_text() -> None:
    """Embeddings are padded; the rows behind the vocabulary are no tokens."""
    stream = streams("bytes")[1]
    assert stream.feed([10**6]) == ""


def test_the_work_per_token_does_not_grow_with_the_text() -> None:
    """The window of the general way stays a few tokens long."""
    tokenizer, stream = streams("pieces")
    assert isinstance(stream, WindowDetokenizer)
    for token in tokenizer.encode("ab c é 😀 " * 200, add_special_tokens=False).ids:
        stream.feed([token])
        assert len(stream._window) <= 16


def test_a_model_chooses_by_its_decoder() -> None:
    """Byte-level vocabularies get the table, all others the window."""
    assert isinstance(ModelText("m", byte_level_tokenizer(), max_context=8).detokenizer(), ByteDetokenizer)
    assert isinstance(ModelText("m", sentencepiece_like(), max_context=8).detokenizer(), WindowDetokenizer)
