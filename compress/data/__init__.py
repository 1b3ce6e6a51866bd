"""The text a run works on: where it comes from, how it is split, how it becomes windows of tokens."""

from compress.data.corpus import Corpus
from compress.data.hub_text import HubText
from compress.data.python_docs import PythonDocs
from compress.data.sotu import Sotu
from compress.data.text_files import TextFiles

__all__ = ["Corpus", "HubText", "PythonDocs", "Sotu", "TextFiles"]
