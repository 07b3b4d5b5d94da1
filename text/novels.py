"""The books of the data set `novels`: in the public domain, from the repository mlschmitt/classic-books-markdown.

A split's text is its books in this order, line ends as newlines, white space around each book dropped, two empty lines
between. Validation and test are authors' other books and another author: no book is trained on and held out.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["NOVELS", "NOVELS_URL", "Split"]

Split: TypeAlias = Literal["train", "valid", "test"]

NOVELS_URL = (
    "https://raw.githubusercontent.com/mlschmitt/classic-books-markdown/944882722e9a96fa6cf2739dc2ea757e101f412f/"
)
NOVELS: dict[Split, tuple[str, tuple[tuple[str, int, str], ...]]] = {
    "train": (
        "7480a93eca5950723721b4202389d1879d4c3630cc06301077beeb5d0d734ecd",
        (
            (
                "Jane Austen/Pride and Prejudice.md",
                688493,
                "1a7b76fa6d827b79926f09c33101216c9044b1c27a0461ab22315d952674dc31",
            ),
            ("Jane Austen/Emma.md", 889921, "39784d345f2156f3a89384bbf9a3a9d902f80391339d295a30d13c2d1213203f"),
            (
                "Jane Austen/Sense and Sensibility.md",
                675615,
                "422edfdedb0dda37f51bfd8518288a054a3a7951b715c91f201def3bfa54339d",
            ),
            (
                "Charles Dickens/Great Expectations.md",
                1005767,
                "699e49d35f46084c5c5684fc9ecf5b3a2cc7f6fdb604ddf2b1a61c59111d65b6",
            ),
            (
                "Charles Dickens/A Tale of Two Cities.md",
                765230,
                "40d18bcf7361fae6ac31d2db506708abe2c97a503df7457dd2232a4e21286cc7",
            ),
            (
                "Charlotte Bronte/Jane Eyre.md",
                1033758,
                "1f104bb772992c400b2860dbbb7cd8d6ed9e4ed08371ee70a013ccddbff947e2",
            ),
            (
                "Emily Bronte/Wuthering Heights.md",
                653914,
                "410c6b344cf438d406f1e241defbcd54393ace51b2c0ec1dc1d9d27960a296ba",
            ),
            (
                "Herman Melville/Moby-Dick.md",
                1200152,
                "664746ebf8a3532450f24cb76022c34e54547f61480602c57efa4c73c83ec6ca",
            ),
            (
                "Mark Twain/Adventures of Huckleberry Finn.md",
                570939,
                "d82738324be6913db9e744b73598e4fc8781a897976a3c8b042a0ae114ad0c52",
            ),
            (
                "Mark Twain/The Adventures of Tom Sawyer.md",
                392488,
                "9369302e11c3313de62a4056f7dae39145f19e1f6f81c82c3a06833bcfa944df",
            ),
            (
                "Mary Wollstonecraft Shelley/Frankenstein.md",
                420400,
                "6ed69cf713624e6169558c481099caac1c6dbf8efc8e97e60f93cd24347525d1",
            ),
            ("Bram Stoker/Dracula.md", 841880, "8f27d5c749abd3d1e5f90ac0722936b8115597c522675c5a29aad0e667c50c14"),
            (
                "Wilkie Collins/The Moonstone.md",
                1081079,
                "e1cf8b731dbc5ceb329329a0f28b7a292907385107fa5ff5c161ed893c0341e6",
            ),
            (
                "Robert Louis Stevenson/Treasure Island.md",
                364960,
                "188860fb66d4c42ea9f2a34ffbec40961285fd9f91f580e60e74df12eadc268a",
            ),
            (
                "Oscar Wilde/The Picture of Dorian Gray.md",
                432416,
                "c31ad16ae72b187f85180bb20eacf8388fbe01ea3e4b3dee78c1447ef49209b0",
            ),
        ),
    ),
    "valid": (
        "8dfcef8aaefaa4c9fd3a4b47638bed730fd24bc36e353dd2ac27c27154ebf999",
        (("Jane Austen/Persuasion.md", 467559, "b8ea8ec67b0d2842a8bb17e29c656abd188a3fa3071e134a4120d3fa1fb41d22"),),
    ),
    "test": (
        "058234bf897f5e9a7bbbfe3728e9fe877ca9f3046920ed1fdc8a80b757c7a4a9",
        (
            (
                "Nathaniel Hawthorne/The Scarlet Letter.md",
                482814,
                "006ef53d31bdb19051b4cabdbe3a6309e27663da1b0aad1ba75c325a3810c955",
            ),
        ),
    ),
}
"""Split -> SHA-256 of the text, and its books: path in the repository, size in bytes, SHA-256."""
