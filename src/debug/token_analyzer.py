"""From roles in a program's text to token positions in the prompt that a model reads.

Roles are found through the tokenizer's own character offsets, so that merged tokens (``#a``, `` =``, ``: ``), numbers
of several tokens and a beginning-of-sequence token come out right for any fast tokenizer. Knows no weights.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from debug.errors import InputError
from debug.kinds import Tokenizer
from debug.programs import GIVEN, LINE_END, ROOT_VALUE, AnyPair, AnyProgram, Program, Span, TextPair, TextProgram
from debug.prompts import CODE, answers, fill, program_start, tokenization
from debug.prompts.chat import turn

SHOWN = 12  # tokens of each row, in a reason why a pair is skipped


class PairError(InputError):
    """A pair that cannot be patched with this tokenizer; the message is the reason recorded for the skipped pair."""


@dataclass(frozen=True)
class TokenizedProgram:
    """A program inside its prompt, as tokens."""

    prompt: str
    token_ids: list[int]
    tokens: list[str]
    """Text of each token; joined they give the prompt. A token without a character of its own shows its name: a
    special token, the space that some tokenizers put before the text, a byte of a character that ends in a later one.
    """
    roles: dict[str, list[int]]
    """Every role -> its token positions: ``ref_depth_k_{lhs,equals,rhs,newline}`` and ``query_*`` of variable binding,
    named spans and ``line_<n>_end`` of other texts, and ``final``."""
    default_targets: list[str]
    rendered: bool = False
    """Whether a chat template made the prompt."""

    def positions(self, name: str | int) -> list[int]:
        """Token positions of a role, of a chain line (``ref_depth_2_line``), of a number, or of several joined by "+".

        Raises:
            PairError: this program has no such role or position.
        """
        if isinstance(name, str) and "+" in name:
            return sorted({position for part in name.split("+") for position in self.positions(part)})
        if isinstance(name, int) or name.isdecimal():
            if not 0 <= int(name) < len(self.token_ids):
                raise PairError(
                    f"position {name} is out of range; the prompt has tokens 0 to {len(self.token_ids) - 1}"
                )
            return [int(name)]
        line = name.removesuffix("line")
        if name not in self.roles and name.endswith("_line") and {f"{line}lhs", f"{line}newline"} <= self.roles.keys():
            return list(range(self.roles[f"{line}lhs"][0], self.roles[f"{line}newline"][-1] + 1))
        if name not in self.roles:
            raise PairError(f"no target {name!r} in this program; it has: {', '.join(self.roles)}")
        return self.roles[name]

    def targets(self, names: Sequence[str | int] | None = None) -> dict[str, list[int]]:
        """Token positions of the named targets; by default right-hand sides, ``query_var``, ``query_colon``, ``final``,
        of texts that are no variable binding all roles.

        Targets that fall on the same positions are one. It is called by its role where it has one (``final`` or
        ``ref_depth_1_rhs`` where it is one of these, so that what holds by construction there is known as such), else
        by the first name, ``position_<number>`` for a number.

        Raises:
            PairError: this program has no such target.
        """
        given = list(self.default_targets if names is None else names)
        found = {name: self.positions(name) for name in given}
        canonical = {tuple(at): f"position_{name}" if str(name).isdecimal() else name for name, at in found.items()}
        roles = {tuple(at): role for role, at in reversed(self.roles.items())}
        named = {tuple(at): name for name, at in reversed(found.items()) if name in self.roles}
        canonical |= {at: roles[at] for at in canonical if at in roles} | named
        canonical |= {tuple(self.roles[name]): name for name in ("ref_depth_1_rhs", "final") if name in self.roles}
        return {str(canonical[tuple(at)]): at for at in found.values()}


@dataclass(frozen=True)
class TokenizedPair:
    """A pair whose two prompts are as many tokens; of the kind root_value they differ in these of the root alone."""

    pair: AnyPair
    original: TokenizedProgram
    counterfactual: TokenizedProgram
    answer_tokens: tuple[int, int]
    """c and o: the first token of the counterfactual's and of the original's answer."""

    @property
    def programs(self) -> tuple[TokenizedProgram, TokenizedProgram]:
        return self.original, self.counterfactual

    @property
    def differing(self) -> tuple[int, ...]:
        """Positions at which the two prompts differ, in order."""
        both = zip(self.original.token_ids, self.counterfactual.token_ids, strict=True)
        return tuple(position for position, (a, b) in enumerate(both) if a != b)

    @property
    def first_difference(self) -> int:
        return self.differing[0]


def analyze(
    tokenizer: Tokenizer, program: AnyProgram, prompt_template: str = CODE, *, chat: bool = False, lead: str = ""
) -> TokenizedProgram:
    """Tokenize a program's prompt and find its roles.

    Args:
        tokenizer: a fast tokenizer of transformers.
        prompt_template: text with one ``{code}``, where the program goes.
        chat: the template's text is the user's turn, which the tokenizer's chat template renders.
        lead: what is read behind all that, as if the model had written it.

    Raises:
        PairError: no token covers a role, or a named span begins or ends inside a token; or the chat template does not
            hold the prompt.
    """
    start, asked = program_start(prompt_template), fill(prompt_template, program.text)
    held = (0, len(asked))
    if chat:
        try:
            asked, held, stripped = turn(tokenizer, asked)
        except InputError as error:
            raise PairError(str(error)) from error
        start += held[0] - stripped
    prompt, token_ids, offsets, added = tokenization.read(tokenizer, asked + lead, rendered=chat)
    read = [position for position, is_added in enumerate(added) if not is_added]
    # Every character belongs to one token. White space that the offsets leave out goes to the token that follows it, at
    # the end to the last; a character that two tokens claim (one is the space put before the text) to the later one.
    ends = [min(offsets[position][1], offsets[following][0]) for position, following in pairwise(read)]
    spans = dict(zip(read, pairwise([0, *ends, len(prompt)]), strict=True))
    names = tokenizer.convert_ids_to_tokens(token_ids)
    texts = [prompt[slice(*spans.get(position, (0, 0)))] or name for position, name in enumerate(names)]
    roles = _roles(program, spans, start, len(texts), held)
    if isinstance(program, TextProgram) and program.exact:
        for name, (first, last) in program.spans.items():
            covered = spans[roles[name][0]][0], spans[roles[name][-1]][1]
            outside = prompt[covered[0] : first + start] + prompt[last + start : covered[1]]
            if outside.strip():
                raise PairError(
                    f"span {name!r}, {program.text[first:last]!r:.80}, begins or ends inside a token: its tokens are "
                    f"{_row([texts[position] for position in roles[name]])}"
                )
    return TokenizedProgram(prompt, token_ids, texts, roles, program.default_targets, chat)


def of_texts(program: Program, tokens: Sequence[str]) -> TokenizedProgram:
    """A program from the texts of its tokens, where a log has these and not their ids (which are then -1).

    Raises:
        PairError: the texts are not those of the program.
    """
    if "".join(tokens) != program.text:
        raise PairError(f"the tokens' texts are {''.join(tokens)[:200]!r}, and the program is {program.text[:200]!r}")
    ends = list(accumulate(map(len, tokens)))
    spans = dict(enumerate(pairwise([0, *ends])))
    roles = _roles(program, spans, 0, len(tokens), (0, len(program.text)))
    return TokenizedProgram(program.text, [-1] * len(tokens), list(tokens), roles, program.default_targets)


def _roles(program: AnyProgram, spans: dict[int, Span], shift: int, n_tokens: int, held: Span) -> dict[str, list[int]]:
    tokens, starts, ends = ([*each] for each in (spans.items(), *zip(*spans.values(), strict=True)))
    roles: dict[str, list[int]] = {}
    for role, (first, last) in program.roles.items():  # characters outside of ``held`` are not in the prompt
        start, end = max(first + shift, held[0]), min(last + shift, held[1])
        near = tokens[bisect_right(ends, start) : bisect_left(starts, end)] if start < end else []
        roles[role] = [position for position, span in near if span[0] < span[1]]
    if missing := [role for role, positions in roles.items() if not positions]:
        raise PairError(f"no token covers {', '.join(missing)} in {program.text!r:.200}")
    return roles | {"final": [n_tokens - 1]}


def analyze_pair(
    tokenizer: Tokenizer,
    pair: AnyPair,
    prompt_template: str = CODE,
    *,
    chat: bool = False,
    lead: str = "",
    begin_alike: bool = False,
) -> TokenizedPair:
    """Tokenize both programs of a pair and check that they can be patched into each other.

    Of texts that are no variable binding the roles of either are those of both, token by token; each stretch of tokens
    that differs and has no name is one more, ``difference_<n>``.

    Raises:
        PairError: the prompts have different numbers of tokens, differ (of variable binding) outside the root value's
            tokens or (of other texts) nowhere, have a role elsewhere (of texts, counterfactuals by name), or their
            answers do not differ in the token that follows the prompt, unless they may ``begin_alike`` (:func:`.forms`;
            where a prompt that does not end in white space leaves two, answers that begin with the space are meant).
    """
    original, counterfactual = (
        analyze(tokenizer, program, prompt_template, chat=chat, lead=lead) for program in pair.programs
    )
    return pair_of(tokenizer, pair, original, counterfactual, begin_alike=begin_alike)


def pair_of(
    tokenizer: Tokenizer,
    pair: AnyPair,
    original: TokenizedProgram,
    counterfactual: TokenizedProgram,
    *,
    begin_alike: bool = False,
) -> TokenizedPair:
    """The pair of two programs that are tokenized; raises PairError as :func:`analyze_pair`, and of answers that begin
    with the same token unless they may."""
    is_text = isinstance(pair, TextPair)
    values = (
        f"{'answer' if is_text else 'root'} {str(pair.expected_original)!r} -> {str(pair.expected_counterfactual)!r}"
    )
    if len(original.token_ids) != len(counterfactual.token_ids):
        raise PairError(
            f"original has {len(original.token_ids)} tokens, counterfactual {len(counterfactual.token_ids)}; "
            f"{'they' if is_text else 'the root value'} must tokenize to the same number of tokens ({values}); "
            f"{_around(original, counterfactual)}"
        )
    differing = [p for p, (a, b) in enumerate(zip(original.token_ids, counterfactual.token_ids, strict=True)) if a != b]
    if is_text:
        if not differing:
            raise PairError(f"the prompts are the same tokens ({values}); {_around(original, counterfactual)}")
        for role in original.roles if pair.kind not in (GIVEN, ROOT_VALUE) else ():  # words that exchange places
            one, other = original.roles[role], counterfactual.roles.get(role)
            if other is not None and one != other:
                raise PairError(
                    f"{role} is at tokens {_row(one)} of the original, at {_row(other)} of the counterfactual; "
                    f"expected the same ({values}); {_around(original, counterfactual)}"
                )
        original, counterfactual = _with_roles_of_both(original, counterfactual, differing)
        return TokenizedPair(pair, original, counterfactual, _answer_tokens(tokenizer, pair, original, begin_alike))
    if pair.kind != ROOT_VALUE:
        if not differing:
            raise PairError(f"the prompts are the same tokens ({values}):\n{original.tokens}")
        return TokenizedPair(pair, original, counterfactual, _answer_tokens(tokenizer, pair, original, begin_alike))
    root = original.roles["ref_depth_1_rhs"]
    if not differing or not set(differing) <= set(root):
        raise PairError(
            f"the prompts differ at tokens {_row(differing)}, but the root value is at {root} ({values}); "
            f"{_around(original, counterfactual)}"
        )
    return TokenizedPair(pair, original, counterfactual, _answer_tokens(tokenizer, pair, original, begin_alike))


def _around(original: TokenizedProgram, counterfactual: TokenizedProgram) -> str:
    """Both rows of tokens, from shortly before the first that differs on."""
    programs = original, counterfactual
    rows = [[*zip(program.token_ids, program.tokens, strict=True)] for program in programs]
    shorter = min(map(len, rows))
    alike = next((at for at in range(shorter) if rows[0][at] != rows[1][at]), shorter)
    first = max(min(alike, shorter - SHOWN // 2) - SHOWN // 2, 0)
    shown = [_row(program.tokens[first : first + SHOWN], first + SHOWN < len(program.tokens)) for program in programs]
    return f"from token {first} on: original {shown[0]}, counterfactual {shown[1]}"


def _row(values: Sequence[object], goes_on: bool | None = None) -> str:
    goes_on = len(values) > SHOWN if goes_on is None else goes_on
    return f"[{', '.join([*map(repr, values[:SHOWN]), *['...'] * goes_on])}]"


def _with_roles_of_both(
    original: TokenizedProgram, counterfactual: TokenizedProgram, differing: Sequence[int]
) -> tuple[TokenizedProgram, TokenizedProgram]:
    roles = original.roles | {name: at for name, at in counterfactual.roles.items() if name not in original.roles}
    stretches: list[list[int]] = []
    for position in differing:
        if stretches and stretches[-1][-1] == position - 1:
            stretches[-1].append(position)
        else:
            stretches.append([position])
    named = [at for name, at in roles.items() if not LINE_END.fullmatch(name)]
    unnamed = {f"difference_{n}": at for n, at in enumerate((at for at in stretches if at not in named), 1)}
    roles = unnamed | roles
    names = [*unnamed, *dict.fromkeys([*original.default_targets, *counterfactual.default_targets])]
    return replace(original, roles=roles, default_targets=names), replace(
        counterfactual, roles=roles, default_targets=names
    )


def _answer_tokens(
    tokenizer: Tokenizer, pair: AnyPair, original: TokenizedProgram, begin_alike: bool
) -> tuple[int, int]:
    values = [str(pair.expected_counterfactual), str(pair.expected_original)]
    try:
        forms = answers.forms(tokenizer, original.prompt, original.token_ids, values, original.rendered)
    except answers.NoPlace as error:
        raise PairError(str(error)) from error
    behind = [form for form in forms if not form.lead]
    if not behind and begin_alike:  # also where one answer is the beginning of the other
        each = (answers.forms(tokenizer, original.prompt, original.token_ids, [v], original.rendered) for v in values)
        behind = [answers.Form(one.space, [], [*one.tokens, *other.tokens]) for one, other in zip(*each, strict=True)]
    if not behind:
        raise PairError(
            f"answers {values[0]} and {values[1]} begin with the same token; the token after the prompt cannot tell "
            "them apart: with scored_by 'whole_answer', or 'greedy', all tokens would"
        )
    c, o = behind[0].tokens
    return c, o
