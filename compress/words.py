"""Student and teacher speak of the same words, or their distributions cannot be compared."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from compress.errors import UserError

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint
    from compress.keys import Known


def check_same_words(student: Checkpoint, teacher: Checkpoint) -> None:
    """Refuse a teacher that speaks of other tokens: distributions over different words cannot be compared.

    Raises:
        UserError: the vocabularies differ, or the teacher has no row for something the student may say.
    """
    difference = _difference(student, teacher)
    if difference:
        raise UserError(
            f"student and teacher have different tokenizers ({student.folder} and {teacher.folder}): {difference}.",
            "Give a teacher of the same family, with the same tokenizer: teacher.path=DIR_OR_ID.",
        )
    rows = [checkpoint.config.vocab_size for checkpoint in (student, teacher)]
    words = max(student.tokenizer().get_vocab().values()) + 1
    if rows[0] < min(words, rows[1]):
        raise UserError(
            f"the tokenizer has {words:,} words, and the student's embedding {rows[0]:,} rows ({student.folder}): its "
            f"teacher has {rows[1]:,}, which are not all padding.",
            f"Enlarge the student in transformers: model.resize_token_embeddings({rows[1]}), then save_pretrained.",
        )
    if rows[0] > rows[1]:
        raise UserError(
            f"student and teacher have the same tokenizer, but embeddings of {rows[0]:,} and {rows[1]:,} rows, some of "
            f"them padding ({student.folder} and {teacher.folder}).",
            f"Pad the teacher in transformers: model.resize_token_embeddings({rows[0]}), then model.save_pretrained.",
        )


def without_padding(teacher: Known, student: Checkpoint) -> Known:
    """The teacher with the rows of embedding and head that its student has too: those beyond are padding.

    A tokenizer of 151,665 words has 151,936 rows in Qwen2.5-0.5B and 152,064 in the 7B.
    """
    rows = student.config.vocab_size
    if rows >= teacher.checkpoint.config.vocab_size:
        return teacher
    return replace(teacher, checkpoint=replace(teacher.checkpoint, rows=rows))


PROBE = "The 1st naïve test:\n\tdef f(x): return x**2  # 北京, 3.14 and \u00a0spaces   here"
"""Words, digits, code, other scripts and spaces: what tokenizers of one vocabulary still cut differently."""


def _difference(student: Checkpoint, teacher: Checkpoint) -> str:
    """The first thing in which two vocabularies differ; empty if none does."""
    own, other = student.tokenizer(), teacher.tokenizer()
    words, words_of_teacher = own.get_vocab(), other.get_vocab()
    if words != words_of_teacher:
        ids = {**words_of_teacher, **words}
        word = min((w for w in ids if words.get(w) != words_of_teacher.get(w)), key=lambda w: (ids[w], w))
        said = [f"id {found[word]}" if word in found else "missing" for found in (words, words_of_teacher)]
        return f"the token {word!r} is {said[0]} in the student's and {said[1]} in the teacher's"
    cut = [tokenizer(PROBE, add_special_tokens=False)["input_ids"] for tokenizer in (own, other)]
    return "they cut the same text into different tokens" if cut[0] != cut[1] else ""
