r"""Sentences that state an answer, in the languages that models write: "the answer is B", "故选：B", "La réponse est (B)".

Three kinds are read: the text after a word for the answer (`_AFTER`), a letter that is chosen (`_CHOSEN`), and a letter that is
called right (`_CALLED`). Conditions and other people's opinions state nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_LINE = 300  # characters of a statement's answer
_MAX_STATEMENTS = 50  # a model caught in a loop makes thousands


class Statement(NamedTuple):
    """An answer that a text states.

    Attributes:
      line: the answer, and what follows it in its line.
      start: the character where the statement begins.
      end: the character where it ends and the answer begins.
      rank: how final the statement is: 1 if it speaks of the answer, and not of a right option; plus 2 if it concludes ("so", or
        a line of its own, "Answer: B"); plus 4 if it says that it is final.
      whole: whether the line is an answer only as a whole: "A: none of these" is not A.
    """

    line: str
    start: int
    end: int
    rank: int
    whole: bool


class _Language(NamedTuple):
    """A language's words for the answer, for "is", for an option, and for being the right one."""

    answer: str
    copula: str = r"(?!)"  # without one, a colon has to follow
    option: str = ""
    right: str = ""


_LANGUAGES = (
    _Language(  # French
        r"réponse(?:\s(?:correcte|exacte|juste|finale|attendue))?|bonne\s(?:option|proposition)|option\scorrecte",
        r"(?:est|serait|doit\sêtre)(?:\s(?:donc|alors|ainsi))?",
        r"option|réponse|proposition",
        r"(?:la\s)?(?:bonne|correcte|juste|exacte)(?:\s(?:réponse|option))?|la\sréponse(?:\s(?:correcte|exacte|juste))?",
    ),
    _Language(  # German
        r"antwort|(?:richtige|korrekte)\s(?:option|lösung|aussage)",
        r"(?:ist|lautet|wäre)(?:\s(?:daher|also|somit|demnach|folglich))?",
        r"option|antwort|antwortmöglichkeit",
        r"(?:die\s)?(?:richtige?|korrekte?)(?:\s(?:antwort|option))?",
    ),
    _Language(  # Spanish
        r"respuesta(?:\s(?:correcta|final))?|(?:opción|alternativa)\scorrecta",
        r"(?:es|sería|debe\sser)(?:\s(?:entonces|por\slo\stanto|por\stanto))?",
        r"opción|respuesta|alternativa",
        r"(?:la\s)?(?:(?:respuesta|opción)\s)?correcta",
    ),
    _Language(  # Italian
        r"risposta(?:\s(?:corretta|esatta|giusta|finale))?|opzione\s(?:corretta|esatta|giusta)",
        r"(?:è|sarebbe|deve\sessere)(?:\s(?:quindi|dunque|pertanto))?",
        r"opzione|risposta",
        r"(?:la\s)?(?:risposta\s)?(?:corretta|esatta|giusta)",
    ),
    _Language(  # Portuguese
        r"resposta(?:\s(?:correta|certa|final))?|(?:opção|alternativa)\s(?:correta|certa)",
        r"(?:é|seria|deve\sser)(?:\s(?:portanto|então))?",
        r"opção|resposta|alternativa|letra",
        r"(?:a\s)?(?:(?:resposta|opção|alternativa)\s)?(?:correta|certa)",
    ),
    _Language(r"antwoord", r"(?:is|luidt)(?:\s(?:dus|daarom))?", r"optie|antwoord", r"(?:juist|correct)"),  # Dutch
    _Language(r"odpowied(?:ź|zią)", r"(?:to|brzmi|jest)"),  # Polish
    _Language(r"ответ(?:ом)?", r"[—–-]|это|является"),  # Russian
    _Language(r"cevap|yanıt"),  # Turkish
    _Language(r"jawaban(?:nya)?(?:\s(?:yang\s)?(?:benar|tepat|akhir))?", r"adalah"),  # Indonesian
    _Language(r"(?:đáp\sán|câu\strả\slời)(?:\s(?:đúng|chính\sxác|cuối\scùng))?", r"là"),  # Vietnamese
    _Language(r"jibu(?:\s(?:sahihi|la\smwisho))?", r"ni"),  # Swahili
    _Language(r"ìdáhùn|idahun"),  # Yoruba
    _Language(r"(?:الإجابة|الجواب|إجابة)(?:\s(?:الصحيحة|الصحيح|النهائية|النهائي))?", r"ه[يو]"),  # Arabic
    _Language(r"उत्तर"),  # Hindi
    _Language(r"উত্তর"),  # Bengali
)
# Without spaces between words: Chinese, Japanese and Korean.
_CHINESE = (
    r"(?:答案|正[确確]的?(?:答案|选项|選項))(?:选项|選項)?(?:[】\]]|{colon}"
    r"|\s?(?:就|应|應)?(?:该|該|当|當)?(?:是|为|為|选择|選擇|选|選)[:：]?)|^\W{{0,3}}答{colon}"
)
_JAPANESE = r"(?:答え|正解|解答|回答|正答)(?:{colon}|は)"
_KOREAN = r"(?:정답|답변|답)(?:{colon}|[은는])"

_MARKS = r"[*_]{0,3}"
_COLON = rf"{_MARKS}\"?\s?[:：ঃ]"  # also JSON's
_ADVERBS = (
    r"(?:therefore|thus|hence|then|clearly|simply|indeed|likely|most\slikely|probably|definitely|certainly|obviously"
    r"|actually)"
)
_IS = (
    rf"(?:,\s{_ADVERBS},)?\s(?:is|was|(?:would|must|should|will)\s(?:{_ADVERBS}\s)?be|(?:seems|appears)\sto\sbe)\b"
    rf"(?:,?\s{_ADVERBS}\b,?)?"
)
_OF_WHAT = r"(?:\s(?:(?:to|for|of|among|from)\b[^\n.:：]{1,60}?|here|above))?"
_LETTER = r"[(（\[]?(?-i:[A-Z])[)）\]]?"
_APART = r"(?<![^\W\d_])"  # not within a word

_AFTER = (
    rf"\b(?:answer|ans){_OF_WHAT}(?:{_COLON}|{_IS})|\bans\.(?=\s)",
    rf"\b(?:correct|best|right|final|my|selected|chosen)\s(?:answer\s)?"
    rf"(?:option|choice|one|letter|statement|response|alternative|selection){_OF_WHAT}(?:{_COLON}|{_IS})",
    # A heading over the answer, a tag, and the last line of GSM8K's solutions.
    rf"^[#*_ ]{{1,6}}(?:the\s)?(?:final\s|correct\s)?answer{_MARKS}[ \t]{{0,9}}$|<answer>",
    rf"^####\s(?=\$?\s?(?:[-+]?[0-9][0-9,]{{0,30}}(?:\.[0-9]{{1,30}})?%?|{_LETTER})\s{{0,9}}\Z)",
    *(rf"{_APART}(?:{word.answer})(?:{_COLON}|\s(?:{word.copula})(?![^\W\d_]))" for word in _LANGUAGES),
    *(words.format(colon=_COLON) for words in (_CHINESE, _JAPANESE, _KOREAN)),
)
_CHOSEN = (
    r"\b(?:I|we)(?:['’](?:d|ll)|\s(?:would|will|should|must))?(?:\s(?:therefore|thus))?"
    r"\s(?:choose|pick|select|go\swith|opt\sfor)"
    rf"(?=\s{_MARKS}(?:(?:the\s)?(?:option|choice|answer|letter)\s{_MARKS})?{_LETTER}"
    rf"{_MARKS}(?:\s?[.,;:!)]|\s?$|\s[—–-]|\s(?:because|since|as)\b))",
    r"(?:(?<!不)[故应應]|(?<![不没沒勿可备備别單单多待挑误誤]))[选選](?:择|擇)?[:：]?"
    rf"(?=\s?{_MARKS}\s?(?:[选選][项項])?\s?{_LETTER}(?![A-Za-z的]))",
)
_RIGHT = (  # "correct" counts only if nothing follows: not "B is correct that ...", nor "B is correct, but"
    r"(?:(?P<answer>the\s(?:(?:only\s)?(?:correct|best|right)\s|most\s[a-z]{1,20}\s)?(?:answer|option|choice|one))\b"
    rf"|(?:correct|right|the\sbest|best)(?={_MARKS}(?:\s?[.,;:!)]|\s?$|\s[—–-]|\s(?:because|since|as\s(?:it|this|the))\b)))"
    r"(?!\W{0,4}(?:but|only|except|if|when|unless|however|though|although)\b)"
)
_WORDING = r"(?:\s?\([^()\n]{1,80}\)|,\s[^,.\n]{1,80},)?"  # Option B (mitochondria) is; option B, mitochondria, is
_NO_OPTION = r"(?!\b(?:option|choice|answer)\b|(?-i:\b[A-Z]\b))"
_CALLED = (
    rf"(?<![\w(-])(?P<option>(?:option|choice|answer|alternative)\s{_MARKS})?"
    rf"(?P<letter>\(?(?-i:[A-Z])(?:\)?{_MARKS}{_WORDING}|[).:]{_MARKS}\s(?P<wording>(?:{_NO_OPTION}[^\n.:]){{3,80}}?)))"
    rf"{_MARKS}\sis(?:\s{_ADVERBS})?\s{_RIGHT}",
    *(
        rf"{_APART}(?P<option>{word.option})\s{_MARKS}(?P<letter>\(?(?-i:[A-Z])\)?){_MARKS}\s(?:{word.copula})\s"
        rf"(?P<answer>{word.right})(?![^\W\d_])"
        for word in _LANGUAGES
        if word.option
    ),
    rf"(?P<option>[选選][项項])?\s?{_MARKS}(?<![A-Za-z])(?P<letter>[(（]?(?-i:[A-Z])[)）]?){_MARKS}"
    r"\s?(?:[选選][项項]|[项項])?(?:(?:是|为|為)(?:唯一)?)?正[确確]的?(?P<answer>答案|[选選][项項])?(?=[。，,；;.！!*]|\s|\Z)",
)
_PATTERNS = [re.compile(pattern, re.I | re.M) for pattern in (*_AFTER, *_CHOSEN, *_CALLED)]

_BEFORE_ANSWER = re.compile(r"(?:[\s$*_:：>]|\\[\[(])*")
# A bare letter is called right only at the beginning of a clause: "Student A is correct" is about another A.
_CLAUSE = re.compile(
    r"(?:\A|[\n.,:;!?(>—–。，：；]|[\s*-][*-]"
    r"|\b(?:so|thus|hence|therefore|then|that|why|only|conclude|and|but)|[故以此有即])[\s*_]*\Z",
    re.I,
)
_JOINED = re.compile(  # A and B is correct; neither A nor
    rf"(?:{_LETTER}{_MARKS}\s?(?:[选選][项項])?(?:[,，、/&]|\s(?:and|or|nor|et|und|y|e|o|ou|oder)\b|[和与與或及])"
    r"|\b(?:neither|nor|both|not))\s?[*_(（]{0,3}\Z",
    re.I,
)
_SENTENCES = re.compile(r"[\n.!?。！？]")
_UNSAID = re.compile(  # a condition, a doubt, or another person's opinion
    r"\b(?:if|whether|unless|suppos(?:e|ing)|assum(?:e|ing)|si|wenn|falls|ob)\b[^\n.,;:]{0,40}\Z"
    r"|\bse\s(?:la|a)\s\Z"
    r"|(?:n['’]t|\b(?:not|never|cannot))\s(?:think|believe|say|agree|see|mean|claim|sure|certain|clear|true|the\scase)\b"
    r"[^\n.,;:]{0,40}\Z"
    r"|\b(?:you|one|some|someone|somebody|students?|people|many)\s(?:(?:might|may|could|would|will)\s)?(?:be\stempted\sto\s)?"
    r"(?:think|say|argue|assume|believe|guess)\b[^\n.;:]{0,40}\Z"
    r"|(?:如果|若|假如|假设|假設|是否|要是|除非|不能|不应|不會|不会)[^\n。，,；;]{0,20}\Z",
    re.I,
)
_CONCLUDES = re.compile(
    r"\b(?:so|therefore|thus|hence|consequently|donc|ainsi|alors|daher|somit|demnach|folglich|entonces|luego|tanto|quindi|dunque"
    r"|pertanto|portanto|então|logo|conclude)\b|所以|因此|因而|故|综上|綜上|したがって|よって|따라서",
    re.I,
)
_FINAL = re.compile(
    r"\b(?:final|finally|ultimately|conclusion|overall|summary|finale|finalmente|endgültig\w*|schließlich|conclusión)\b"
    r"|最[终終后後]|结论|結論",
    re.I,
)
_RETRACTED = re.compile(
    r"(?:^|[.!?—–(*]\s{0,3})(?:wait|actually|correction|sorry|oops|hold\son|hmm+|no|nein|non)\b"
    r"|\b(?:let\sme|let['’]s)\s(?:re-?\w+|double)|\bI\s(?:made|was)\s(?:an?\s)?(?:mistake|error|wrong)|\bon\ssecond\sthought"
    r"|不对|不對|等等|等一下|更正|抱歉",
    re.I | re.M,
)
_LABEL = re.compile(r"[:：>】\]\n#]\s*\Z|\A\W*(?:\w+\s){0,2}answer\W*\Z", re.I)
_QUESTION = re.compile(r"[^\n.!。！]{0,40}[?？]")


def stated(text: str) -> Iterator[Statement]:
    """The statements of a text's answer, the last one first; none of them is empty."""
    found = {match.start(): match for pattern in reversed(_PATTERNS) for match in pattern.finditer(text)}
    for match in sorted(found.values(), key=re.Match.start, reverse=True)[:_MAX_STATEMENTS]:
        groups, before = match.groupdict(), text[max(0, match.start() - 100) : match.start()]
        if _UNSAID.search(before):
            continue
        if "letter" in groups:
            called = groups["option"] or groups["answer"] or _CLAUSE.search(before)
            if not called or _JOINED.search(before) or _QUESTION.match(text, match.end(), match.end() + 50):
                continue
            line, end = groups["letter"].strip(" *_"), match.end()
        else:
            after = _BEFORE_ANSWER.match(text, match.end(), match.end() + 100)
            assert after is not None, "it also matches nothing"
            end = after.end()
            line = re.split(r"\n|</answer>", text[end : end + MAX_LINE], maxsplit=1)[0]
            line = line.strip().rstrip("!")  # not a factorial
        if line:
            yield Statement(line, match.start(), end, _rank(match, before), bool(groups.get("wording")))


def _rank(match: re.Match, before: str) -> int:
    sentence, groups = _SENTENCES.split(before)[-1], match.groupdict()
    said = sentence + match[0]
    own_line = not re.sub(r"[\W_]|\b(?:the|correct|final)\b", "", sentence, flags=re.I)
    label = own_line and _LABEL.search(match[0]) is not None
    names = "letter" not in groups or bool(groups["answer"])
    return names + 2 * (label or bool(_CONCLUDES.search(said))) + 4 * bool(_FINAL.search(said))


def retracted(text: str, before: Statement, after: Statement) -> bool:
    """Whether the text takes one statement back before it makes the other: "Wait", "No,", "I made a mistake"."""
    return _RETRACTED.search(text, before.end + 1, after.start) is not None
