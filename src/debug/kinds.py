"""Names for values that no checked type describes, each with its reason. Imports nothing of this project."""

from typing import Any

Argument = Any  # an argument on its way to the function that names its type, often a library's
Interpreted = Any  # a value of an interpreted program: the operation that meets it checks what it is
Json = Any  # what JSON holds, checked where it is read: a union would have to be narrowed again at every field's use
Module = Any  # a Hugging Face module, or nnsight's envoy of one: which modules it has differs by architecture
Tokenizer = Any  # a fast tokenizer of transformers, which types one text or id as perhaps a list of them
Traced = Any  # a tensor or list in an nnsight trace, which gives it a save() that its own class does not have
