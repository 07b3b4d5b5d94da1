"""Vocabularies: round trips, what they refuse, and what a model's folder keeps of them."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polydiff.core.config import from_dict, to_dict
from polydiff.core.errors import ArgumentError, CheckpointError, ConfigError, DataError
from polydiff.text.vocabulary import TEXT8, AnyVocabulary, Bytes, Characters, Pretrained, lost, normalise


@dataclass(frozen=True)
class Holder:
    vocabulary: AnyVocabulary


def word_tokenizer(folder: Path, **settings_: int) -> Path:
    """A `tokenizer.json` made by the library: whole words, some of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[UNK]": 0, "the": 1, "cat": 2, "sat": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[CLS]"])
    if settings_:
        tokenizer.enable_truncation(**settings_)
        tokenizer.enable_padding(length=7)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def byte_level(folder: Path) -> Path:
    """A byte-level BPE trained on a line: it writes every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, the other cat sat there"], trainer)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_text8_is_space_then_a_to_z():
    vocabulary = Characters(TEXT8)
    assert vocabulary.size == 27
    assert vocabulary.encode(" abz") == [0, 1, 2, 26]
    assert vocabulary.decode([3, 1, 20]) == "cat"
    assert vocabulary.array("cat").dtype == np.uint8
    assert vocabulary.encode("") == [] and vocabulary.decode([]) == ""


@given(st.text(alphabet="aé𝄞\n\ufffd☃z\0", max_size=30))
@settings(max_examples=50, deadline=None)
def test_characters_round_trip_beyond_the_basic_plane(text: str):
    alphabet = "☃a\0é𝄞\nz\ufffd"
    vocabulary = Characters(alphabet)
    ids = vocabulary.encode(text)
    assert ids == [alphabet.index(symbol) for symbol in text]
    assert vocabulary.decode(ids) == text


def test_large_alphabets_are_not_cut_to_a_byte():
    vocabulary = Characters("".join(map(chr, range(0x4E00, 0x4E00 + 300))))
    assert vocabulary.encode(chr(0x4E00 + 299) + chr(0x4E00)) == [299, 0]


@given(st.text(max_size=30))
@settings(max_examples=50, deadline=None)
def test_bytes_round_trip(text: str):
    assert Bytes().encode(text) == list(text.encode())
    assert Bytes().decode(Bytes().encode(text)) == text


def test_bytes_that_are_no_text_are_shown_and_surrogates_refused():
    assert Bytes().decode([0x61, 0xFF, 0x62]) == "a\ufffdb"
    with pytest.raises(ArgumentError, match="position 1"):
        Bytes().encode("a\ud800")


@pytest.mark.parametrize(
    ("text", "position", "symbol"), [("abCd", 2, "C"), ("a\n", 1, r"\\n"), ("é", 0, "é"), ("ab𝄞", 2, "1D11E")]
)
def test_symbols_outside_the_alphabet_are_named_with_their_place(text: str, position: int, symbol: str):
    with pytest.raises(ArgumentError, match=rf"{symbol}.*at position {position}\b"):
        Characters(TEXT8).encode(text)


@pytest.mark.parametrize("wrong", [27, -1, 1000])
def test_tokens_outside_the_vocabulary_are_named(wrong: int):
    with pytest.raises(ArgumentError, match=rf"ids\[1\]: got {wrong}"):
        Characters(TEXT8).decode([0, wrong])


@pytest.mark.parametrize("alphabet", ["", "aba"])
def test_alphabets_must_be_sets(alphabet: str):
    with pytest.raises(ArgumentError, match="alphabet"):
        Characters(alphabet)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 10 o'clock -- NOW!", "it s o clock now "),
        ("Café Ångström", "cafe angstrom"),
        ("cafe\u0301s", "cafes"),
        ("ﬁne", "fine"),
        ("Straße, Æsir", "stra e sir"),
        ("İK", "ik"),
        ("  a\n\n\tb", " a b"),
        ("42", " "),
        ("", ""),
    ],
)
def test_normalisation_rule(text: str, expected: str):
    assert normalise(text) == expected
    assert Characters(TEXT8).normalise(text) == expected
    assert Characters("ab").normalise(text) == text and Bytes().normalise(text) == text


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_normal_text_is_in_the_alphabet_and_stays(text: str):
    found = normalise(text)
    assert set(found) <= set(TEXT8) and "  " not in found and normalise(found) == found
    plain = "".join(s for s in unicodedata.normalize("NFKD", text) if not unicodedata.combining(s)).lower()
    assert found.replace(" ", "") == "".join(s for s in plain if "a" <= s <= "z")


@pytest.mark.parametrize("vocabulary", [Characters("xyz"), Bytes(), Pretrained(12, "ab")], ids=str)
def test_configurations_hold_them(vocabulary: AnyVocabulary):
    values = json.loads(json.dumps(to_dict(Holder(vocabulary))))
    assert from_dict(Holder, values) == Holder(vocabulary)
    assert "content" not in values["vocabulary"]


def test_what_the_normal_form_loses_is_counted():
    text = "Äpfel, 33 – 🙂 Straße!\n"
    assert lost(text) == {"3": 2, "🙂": 1, "ß": 1}
    assert Characters(TEXT8).lost(text) == lost(text)
    assert not Bytes().lost(text) and not Characters("abc").lost(text)


def test_configurations_are_strict():
    for values in ({"alphabet": 3}, {"alphabet": "ab", "size": 2}, {"entries": 0, "sha256": ""}):
        with pytest.raises(ConfigError):
            from_dict(Holder, {"vocabulary": values})


def test_pretrained_is_kept_with_the_model(tmp_path: Path):
    found = Pretrained.read(word_tokenizer(tmp_path / "source"))
    assert found.size == 5  # with the special token
    assert found.encode("the cat sat on") == [1, 2, 3, 0] and found.decode([1, 2, 4]) == "the cat [CLS]"
    found.save(tmp_path / "model")
    again = from_dict(Holder, to_dict(Holder(found))).vocabulary
    assert again == found and isinstance(again, Pretrained)
    with pytest.raises(ArgumentError, match="tokenizer.json"):
        again.encode("the")
    with pytest.raises(ArgumentError, match="tokenizer.json"):
        again.save(tmp_path / "elsewhere")
    assert again.at(tmp_path / "model").encode("the cat") == [1, 2]
    assert Pretrained.read(tmp_path / "model" / "tokenizer.json") == found


def test_a_foreign_tokenizer_is_refused(tmp_path: Path):
    found = Pretrained.read(word_tokenizer(tmp_path / "source"))
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        found.at(tmp_path)
    byte_level(tmp_path / "other")
    with pytest.raises(CheckpointError, match="not the tokenizer"):
        found.at(tmp_path / "other")
    with pytest.raises(CheckpointError, match="5 tokens"):
        Pretrained(6, found.sha256).at(tmp_path / "source")


def test_truncation_and_padding_of_the_file_do_not_apply(tmp_path: Path):
    found = Pretrained.read(word_tokenizer(tmp_path / "source", max_length=2))
    assert found.encode("the cat sat the cat") == [1, 2, 3, 1, 2]
    assert found.encode("cat") == [2]


@pytest.mark.parametrize("text", ["the cat", "Ünïcode ☃\n\n  x", "", "[CLS]"])
def test_byte_level_tokenizers_are_exact(tmp_path: Path, text: str):
    found = Pretrained.read(byte_level(tmp_path / "bpe"))
    assert found.decode(found.encode(text)) == text
    assert len(found.encode("the cat sat")) < 11


def test_what_is_no_tokenizer_is_named(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="tokenizer.json"):
        Pretrained.read(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match="cannot be read"):
        Pretrained.read(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        Pretrained.read(tmp_path / "empty")
