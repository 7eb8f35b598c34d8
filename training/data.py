"""Seeded generator of the tiny model's corpus: toy stories and short chats, made of the words in `lexicon.py`.

Every example has a `key`, the content that its answer hangs on: the hero and the thing of a story, the two numbers of a
sum, the string to copy. A key belongs to one split for ever (`is_held_out`), and each split draws from its own random
stream, so held-out examples differ from the training ones by seed and by content. The closed kinds (`CLOSED_KINDS`:
facts, counting, spelling, small talk) have too few possible contents for that; they are trained on whole and not scored
as held-out ability.

    python training/data.py --count 5            # print a few examples
"""

# ruff: noqa: SIM905 - lists of words read best as one string

from __future__ import annotations

import argparse
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice

import lexicon as lx

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SPLITS = ("train", "heldout")
HELD_OUT_ONE_IN = 12  # one key in twelve is never trained on
SUM_RANGE = (0, 99)  # both terms of an addition; the result goes up to 198
DIFFERENCE_RANGE = (0, 99)  # 99 >= a >= b >= 0
MODEL_NAME = "Tiny"
Message = dict[str, str]


@dataclass(frozen=True)
class Example:
    """One document. A raw text has `messages == ()`; a chat has `text == ""` and ends with the assistant's answer."""

    kind: str
    key: str
    text: str = ""
    messages: tuple[Message, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """The expected last answer of a chat."""
        return self.messages[-1]["content"] if self.messages else ""

    def document(self) -> str:
        """The text that is trained on, special tokens included."""
        if not self.messages:
            return f"{self.text}{IM_END}{END_OF_TEXT}"
        return render_chat(self.messages) + END_OF_TEXT


def render_chat(messages: tuple[Message, ...] | list[Message], add_generation_prompt: bool = False) -> str:
    """The chat template of the tokenizer, in Python: ChatML, one turn a block."""
    turns = "".join(f"{IM_START}{m['role']}\n{m['content']}{IM_END}\n" for m in messages)
    return turns + (f"{IM_START}assistant\n" if add_generation_prompt else "")


def is_held_out(key: str) -> bool:
    """Whether content `key` is kept out of training; a fixed hash, the same on every machine."""
    return zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0


class Draw:
    """A random stream that belongs to one split and draws only the contents of that split."""

    def __init__(self, seed: int, split: str):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
        self.rng = random.Random(f"{split}:{seed}")
        self.random = self.rng.random
        self.held_out = split == "heldout"

    def pick(self, items):
        return items[int(self.random() * len(items))]

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(self.random() * (high - low + 1))

    def chance(self, p: float) -> bool:
        return self.random() < p

    def keyed(self, make: Callable[[], tuple[str, object]]):
        """Draws (key, content) until the key belongs to this split."""
        while True:
            key, content = make()
            if is_held_out(key) == self.held_out:
                return key, content


def article(phrase: str) -> str:
    return ("an " if phrase[0].lower() in "aeiou" and not phrase.startswith("uni") else "a ") + phrase


ONSETS = "b d f g h k l m n p r s t v z br dr fl gr kl pl st tr sh ch".split()
VOWELS = "a e i o u a o ee oo ai".split()
CODAS = ["", "", "", "n", "m", "l", "r", "s", "t", "x", "nk", "p"]


def nonce_word(d: Draw) -> str:
    """A pronounceable word that means nothing, so that copying cannot lean on known words."""
    return "".join(d.pick(ONSETS) + d.pick(VOWELS) + d.pick(CODAS) for _ in range(d.between(1, 3)))


# ---------------------------------------------------------------- stories


class Story:
    """Draws a story: a plot, its cast and things (the state), then one sentence for each step of the plot.

    `fields` is the state that every sentence is filled from, `facts` what scoring needs to know.
    """

    def __init__(self, d: Draw):
        self.key, (hero, girl, thing, noun, colour, size) = d.keyed(lambda: self._hero_and_thing(d))
        self.plot = d.pick(PLOT_NAMES)
        self.moral, self.steps = lx.PLOTS[self.plot]
        friend_girl = d.chance(0.5)
        friend = d.pick(lx.GIRLS if friend_girl else lx.BOYS)
        while friend == hero:
            friend = d.pick(lx.GIRLS if friend_girl else lx.BOYS)
        place, preposition = d.pick(lx.PLACES).split("|")
        spot, spot2 = d.rng.sample(lx.SPOTS, 2)
        other_noun = d.pick(lx.NOUNS)
        while other_noun == noun:
            other_noun = d.pick(lx.NOUNS)
        colour2 = d.pick(lx.COLOURS)
        while colour2 == colour:
            colour2 = d.pick(lx.COLOURS)
        helper = d.pick(lx.HELPERS)
        self.fields = f = {
            "H": hero, "kid": "girl" if girl else "boy", "G": friend, "P": d.pick(lx.PARENTS), "T": thing, "N": noun,
            "aT": article(thing), "C": colour, "C2": colour2, "size": size, "U": f"{colour2} {other_noun}",
            "M": other_noun, "aU": article(f"{colour2} {other_noun}"), "place": place, "in_place": f"{preposition} {place}",
            "spot": spot, "spot2": spot2, "spot_cap": spot[0].upper() + spot[1:], "animal": d.pick(lx.ANIMALS),
            "food": d.pick(lx.FOODS), "helper": helper, "helper_cap": helper[0].upper() + helper[1:],
            "build": d.pick(lx.BUILDS), "day": d.pick(lx.DAYS), "trait": d.pick(TRAITS),
            "daypart": d.pick(("morning", "afternoon", "day")), "sky": d.pick(("bright", "grey", "clear", "fresh", "mild")),
        }  # fmt: skip
        f["kid_a"] = "a " + f["kid"]
        f["aN"], f["aA"], f["aC2"] = article(noun), article(f["animal"]), article(colour2)
        f["AA"] = f["aA"].capitalize()
        f["he"], f["him"], f["his"], f["his_own"] = (
            ("she", "her", "her", "hers") if girl else ("he", "him", "his", "his")
        )
        f["He"], f["His"], f["H_his"] = f["he"].capitalize(), f["his"].capitalize(), f["his"]
        f["ghe"], f["ghim"], f["ghis"] = ("she", "her", "her") if friend_girl else ("he", "him", "his")
        f["gHe"] = f["ghe"].capitalize()
        f["weather"] = d.pick(d.pick(WEATHERS)).format_map(f)
        f["moral"] = d.pick(lx.MORALS[self.moral]).format_map(f)
        sentences = []
        for step in self.steps:
            sentence = d.pick(step)
            if sentence:
                text = sentence.format_map(f)
                if text:
                    sentences.append(text)
        if d.chance(0.3):  # paragraphs, now and then
            third = len(sentences) // 3
            self.text = "\n\n".join(
                " ".join(part) for part in (sentences[:third], sentences[third : 2 * third], sentences[2 * third :])
            )
        else:
            self.text = " ".join(sentences)
        self.facts = {"hero": hero, "friend": friend, "noun": noun, "thing": thing, "plot": self.plot}

    @staticmethod
    def _hero_and_thing(d: Draw):
        girl = d.chance(0.5)
        hero = nonce_word(d).capitalize() if d.chance(0.12) else d.pick(lx.GIRLS if girl else lx.BOYS)
        noun = nonce_word(d) if d.chance(0.04) else d.pick(lx.NOUNS)
        colour, size = d.pick(lx.COLOURS), d.pick(lx.SIZES)
        thing = d.pick((f"{colour} {noun}", f"{colour} {noun}", f"{size} {colour} {noun}"))
        return f"{hero}|{noun}", (hero, girl, thing, noun, colour, size)

    def question(self, d: Draw) -> tuple[str, str]:
        question, answer = d.pick(lx.QUESTIONS[self.plot])
        return question.format_map(self.fields), answer.format_map(self.fields)


PLOT_NAMES = tuple(lx.PLOTS)
WEATHERS = tuple(lx.WEATHER.values())
TRAITS = "kind brave clever shy quiet funny happy curious gentle young cheerful".split()


def chat(kind: str, key: str, *turns: str, **facts: str) -> Example:
    """A chat of alternating user and assistant turns."""
    roles = ("user", "assistant")
    messages = tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(turns))
    return Example(kind, key, messages=messages, facts=facts)


def story(d: Draw) -> Example:
    s = Story(d)
    return Example("story", s.key, text=s.text, facts=s.facts)


def tell(d: Draw) -> Example:
    """A story on request. Most requests name the hero and the thing, as scoring does."""
    s = Story(d)
    r = d.random()
    if r < 0.68:
        request = d.pick(lx.REQUESTS)
    elif r < 0.78 and s.plot not in ("bedtime", "animal"):  # those two may leave the friend out
        request = d.pick(lx.REQUESTS_PAIR)
    elif r < 0.86:
        request = d.pick(lx.REQUESTS_NAME)
    elif r < 0.93:
        request = d.pick(lx.REQUESTS_THING)
    else:
        request = d.pick(lx.REQUESTS_ANY)
    return chat("tell", s.key, request.format_map(s.fields), s.text, **s.facts)


# ---------------------------------------------------------------- copying and looking things up

COPY_WORDS = tuple(
    sorted(
        {
            *lx.NOUNS, *lx.COLOURS, *lx.SIZES, *lx.ANIMALS, *lx.FOODS, *lx.ADJECTIVES, *lx.THINGS, *lx.VERBS,
            *lx.NUMBERS, *lx.GIRLS, *lx.BOYS,
        }
    )
)  # fmt: skip
ECHO_WORDS = tuple(word for word in COPY_WORDS if word.islower())
LETTERS = "abcdefghijklmnopqrstuvwxyz"
EMOJI = "".join(map(chr, range(0x1F600, 0x1F640))) + "".join(map(chr, range(0x1F400, 0x1F43F)))
PUNCTUATION = "!?.,;:-+*/=()[]<>#@%&'\""


def length(d: Draw, longest: int) -> int:
    """A length from 1 to `longest`, short ones more often."""
    return 1 + int(d.random() ** 1.6 * longest)


def random_words(d: Draw, n: int) -> list[str]:
    if d.chance(0.2):
        return [nonce_word(d) for _ in range(n)]
    few = d.chance(0.15)  # a small vocabulary makes repeats, which a plain "what followed last time" gets wrong
    words = [d.pick(COPY_WORDS) for _ in range(max(2, n // 2))] if few else COPY_WORDS
    return [d.pick(words) for _ in range(n)]


def random_string(d: Draw) -> str:
    """Something to be copied: words, digits, letters, signs, other scripts, or a sentence."""
    r = d.random()
    if r < 0.42:
        words = random_words(d, length(d, 48))
        return d.pick((" ", " ", " ", ", ", "\n", " - ")).join(words)
    if r < 0.60:
        return d.pick(("", "", " ", ", ")).join(str(d.between(0, 9)) for _ in range(length(d, 24)))
    if r < 0.68:
        return ", ".join(str(d.between(0, 999)) for _ in range(length(d, 12)))
    if r < 0.76:
        letters = LETTERS if d.chance(0.6) else LETTERS.upper()
        return d.pick(("", " ")).join(d.pick(letters) for _ in range(length(d, 16)))
    if r < 0.82:
        signs = LETTERS + LETTERS.upper() + "0123456789" * 3 + PUNCTUATION
        return "".join(d.pick(signs) for _ in range(length(d, 16)))
    if r < 0.88:
        scripts = (lambda: chr(d.between(0x4E00, 0x9FA5)), lambda: d.pick(EMOJI), lambda: chr(d.between(0xC0, 0x17F)))
        script = d.pick(scripts)
        return "".join(script() for _ in range(length(d, 10)))
    sentences = Story(d).text.replace("\n\n", " ").split(". ")
    start = d.between(0, max(0, len(sentences) - 3))
    return ". ".join(sentences[start : start + d.between(1, 2)])


def copy(d: Draw) -> Example:
    key, s = d.keyed(lambda: (lambda s: ("copy:" + s, s))(random_string(d)))
    return chat("copy", key, d.pick(lx.REPEAT).format(s=s), s)


def echo(d: Draw) -> Example:
    """Raw text in which a random passage comes again and again: the plainest lesson in induction.

    The passage never reads like the start of a story: a story that someone begins should go on, not come again.
    """

    def words() -> tuple[str, str]:
        n = d.between(3, 24)
        kind = d.between(1, 4)
        if kind == 1:
            items = [nonce_word(d) for _ in range(n)]
        elif kind == 2:
            items = [d.pick(ECHO_WORDS) for _ in range(n)]
        else:
            items = [d.pick(LETTERS) if kind == 3 else str(d.between(0, 999)) for _ in range(n)]
        s = " ".join(items)
        return "copy:" + s, s

    key, s = d.keyed(words)
    return Example("echo", key, text=d.pick(("\n", "\n\n", " | ", " ")).join([s] * d.between(2, 4)))


def lookup(d: Draw) -> Example:
    """A list of names and values, one of which is asked for."""

    def table():
        n = 2 + int(d.random() ** 1.5 * 22)
        names = list(dict.fromkeys(random_words(d, n)))
        style = d.between(0, 3)
        if style == 0:
            values = [str(d.between(0, 99)) for _ in names]
        elif style == 1:
            values = [str(d.between(100, 9999)) for _ in names]
        else:
            values = random_words(d, len(names))
        return "lookup:" + " ".join(names + values), (names, values)

    key, (names, values) = d.keyed(table)
    i = d.between(0, len(names) - 1)
    name, value = names[i], values[i]
    sep = d.pick((": ", " = ", " is ", " -> "))
    rows = d.pick(("\n", "\n", ", ", "; ")).join(f"{n}{sep}{v}" for n, v in zip(names, values))
    question = d.pick(("What is {n}?", "Which value has {n}?", "Look up {n}.", "{n}?", "What stands next to {n}?"))
    question = question.format(n=name)
    prompt = d.pick((f"{rows}\n{question}", f"Here is a list.\n{rows}\n{question}", f"{question}\n{rows}"))
    return chat("lookup", key, prompt, value)


# ---------------------------------------------------------------- questions about a passage


def passage(d: Draw) -> Example:
    return story_question(d) if d.chance(0.3) else world_question(d)


def story_question(d: Draw) -> Example:
    """A question about a whole story."""
    s = Story(d)
    question, answer = s.question(d)
    prompt = d.pick((f"{s.text}\n\n{question}", f"{s.text}\n\nQuestion: {question}", f"{question}\n\n{s.text}"))
    return chat("passage", s.key, prompt, answer, about="story")


def world_question(d: Draw) -> Example:
    """People with things in places; some move or hand a thing on; one question about the end."""
    key, (asked, noun) = d.keyed(lambda: (lambda p, n: (f"{p}|{n}", (p, n)))(d.pick(ALL_NAMES), d.pick(lx.NOUNS)))
    n = d.between(2, 4)
    people = [asked] + [p for p in d.rng.sample(ALL_NAMES, n) if p != asked][: n - 1]
    nouns = [noun] + [x for x in d.rng.sample(lx.NOUNS, n) if x != noun][: n - 1]
    n = min(len(people), len(nouns))
    people, nouns = people[:n], nouns[:n]
    colours = d.rng.sample(lx.COLOURS, n)
    where = {p: d.pick(lx.PLACES).split("|") for p in people}
    holder = dict(zip(nouns, people))
    lines = []
    for p, x, c in zip(people, nouns, colours):
        thing = article(f"{c} {x}")
        at = f"{where[p][1]} {where[p][0]}"
        lines.append(
            d.pick((f"{p} is {at}. {p} has {thing}.", f"{p} has {thing} and is {at}.", f"{p} is {at} with {thing}."))
        )
    d.rng.shuffle(lines)
    for _ in range(d.pick((0, 0, 1, 1, 2, 3))):
        p = d.pick(people)
        if d.chance(0.5):
            where[p] = d.pick(lx.PLACES).split("|")
            lines.append(d.pick((f"{p} goes to {where[p][0]}.", f"Then {p} walks to {where[p][0]}.")))
        else:
            x = d.pick(nouns)
            old = holder[x]
            new = d.pick([q for q in people if q != old])
            holder[x] = new
            lines.append(
                d.pick(
                    (
                        f"{old} gives the {x} to {new}.",
                        f"Then {old} hands {new} the {x}.",
                        f"{new} takes the {x} from {old}.",
                    )
                )
            )
    x = noun
    owner = holder[x]
    at = f"{where[owner][1]} {where[owner][0]}"
    r = d.random()
    if r < 0.4:
        question, answer = d.pick((f"Who has the {x}?", f"Who has the {x} now?")), f"{owner} has the {x}."
    elif r < 0.6:
        spelling = d.pick(("colour", "color"))
        question, answer = f"What {spelling} is the {x}?", f"The {x} is {colours[0]}."
    elif r < 0.8:
        question, answer = f"Where is {asked}?", f"{asked} is {where[asked][1]} {where[asked][0]}."
    else:
        question, answer = f"Where is the {x}?", f"{owner} has the {x}, so it is {at}."
    text = " ".join(lines)
    prompt = d.pick((f"{text} {question}", f"{text}\n{question}", f"{text}\n\nQuestion: {question}"))
    return chat("passage", key, prompt, answer, about="world")


ALL_NAMES = tuple(lx.GIRLS + lx.BOYS)


# ---------------------------------------------------------------- numbers


def addition(d: Draw) -> Example:
    def pair():
        high = SUM_RANGE[1] if d.chance(0.75) else 12
        a, b = d.between(SUM_RANGE[0], high), d.between(SUM_RANGE[0], high)
        return f"{min(a, b)}+{max(a, b)}", (a, b)

    key, (a, b) = d.keyed(pair)
    if max(a, b) <= 12 and d.chance(0.3):
        name, food = d.pick(ALL_NAMES), d.pick(("apples", "cookies", "nuts", "plums", "coins", "shells", "books"))
        ask = d.pick((
            f"{name} has {a} {food} and gets {b} more. How many {food} does {name} have?",
            f"There are {a} {food} in one box and {b} {food} in the other. How many {food} are there?",
        ))  # fmt: skip
    else:
        ask = d.pick(lx.SUM_ASK).format(a=a, b=b)
    return chat("addition", key, ask, f"{a} + {b} = {a + b}.", result=str(a + b))


def subtraction(d: Draw) -> Example:
    def pair():
        high = DIFFERENCE_RANGE[1] if d.chance(0.75) else 12
        b, a = sorted((d.between(DIFFERENCE_RANGE[0], high), d.between(DIFFERENCE_RANGE[0], high)))
        return f"{a}-{b}", (a, b)

    key, (a, b) = d.keyed(pair)
    return chat(
        "subtraction", key, d.pick(lx.DIFFERENCE_ASK).format(a=a, b=b), f"{a} - {b} = {a - b}.", result=str(a - b)
    )


def counting(d: Draw) -> Example:
    r = d.random()
    if r < 0.5:
        a = d.between(0, 60)
        b = a + d.between(2, 14)
        if d.chance(0.25):
            return chat(
                "count", f"{b}..{a}", f"Count down from {b} to {a}.", ", ".join(map(str, range(b, a - 1, -1))) + "."
            )
        ask = d.pick(("Count from {a} to {b}.", "Please count from {a} to {b}.", "Can you count from {a} to {b}?"))
        return chat("count", f"{a}..{b}", ask.format(a=a, b=b), ", ".join(map(str, range(a, b + 1))) + ".")
    words = random_words(d, d.between(1, 10))
    if r < 0.7:
        return chat("count", " ".join(words), "How many words are here? " + " ".join(words), f"{len(words)} words.")
    if r < 0.85:
        ask, i = d.pick((("first", 0), ("last", -1)))
        return chat("count", " ".join(words), f"What is the {ask} word? " + " ".join(words), words[i])
    a, b = d.between(0, 99), d.between(0, 99)
    while b == a:
        b = d.between(0, 99)
    return chat("count", f"{a}>{b}", f"Which number is bigger, {a} or {b}?", f"{max(a, b)} is bigger.")


# ---------------------------------------------------------------- closed kinds


def fact(d: Draw) -> Example:
    r = d.between(0, 7)
    if r == 0:
        x, y = d.pick(lx.OPPOSITES).split()
        if d.chance(0.5):
            x, y = y, x
        ask = d.pick(("What is the opposite of {x}?", "What is the opposite of the word {x}?", "Opposite of {x}?"))
        return chat("fact", x, ask.format(x=x), f"The opposite of {x} is {y}.")
    if r == 1:
        x, sound = d.pick(lx.SOUNDS).split(" says ")
        ask = d.pick((f"What does a {x} say?", f"What sound does a {x} make?"))
        return chat("fact", x, ask.replace("a owl", "an owl"), f"{article(x).capitalize()} says {sound}.")
    if r == 2:
        x, baby = d.pick(lx.BABIES).split()
        return chat("fact", x, f"What is a baby {x} called?", f"A baby {x} is called a {baby}.")
    if r == 3:
        x, colour = d.pick(lx.FACT_COLOURS).rsplit(" ", 1)
        ask = f"What {d.pick(('colour', 'color'))} is {x}?"
        return chat("fact", x, ask, f"{x[0].upper()}{x[1:]} is {colour}.")
    if r == 4:
        x, legs = d.pick(lx.LEGS).split()
        return chat("fact", x, f"How many legs does {article(x)} have?", f"{article(x).capitalize()} has {legs} legs.")
    if r == 5:
        x, home = d.pick(lx.HOMES).split()
        place = "water" if home == "water" else article(home)
        return chat("fact", x, f"Where does {article(x)} live?", f"{article(x).capitalize()} lives in {place}.")
    names, what = (lx.DAYS, "day") if r == 6 else (lx.MONTHS, "month")
    i, side = d.between(0, len(names) - 1), d.pick(("after", "before"))
    other = names[(i + (1 if side == "after" else -1)) % len(names)]
    if d.chance(0.15):
        ask = "What are the days of the week?" if what == "day" else "What are the months of the year?"
        return chat("fact", what, ask, ", ".join(names) + ".")
    ask = d.pick((f"Which {what} comes {side} {names[i]}?", f"What {what} is {side} {names[i]}?"))
    return chat("fact", names[i], ask, f"{other} comes {side} {names[i]}.")


def spell(d: Draw) -> Example:
    word = d.pick(COPY_WORDS)
    r = d.random()
    if r < 0.6:
        ask = d.pick(("How do you spell {w}?", "Spell {w}.", "Spell the word {w}.", "Please spell {w}."))
        return chat("spell", word, ask.format(w=word), "-".join(word))
    if r < 0.8:
        return chat("spell", word, f"What is the first letter of {word}?", f"The first letter of {word} is {word[0]}.")
    return chat("spell", word, f"Which word is this? {'-'.join(word)}", word)


def talk(d: Draw) -> Example:
    if d.chance(0.25):
        ask = d.pick(lx.UNKNOWN_ASK).format(x=d.pick(lx.UNKNOWN_X), y=d.pick(lx.UNKNOWN_Y))
        return chat("talk", ask, ask, d.pick(lx.UNKNOWN_SAY))
    if d.chance(0.1):
        name = nonce_word(d).capitalize() if d.chance(0.4) else d.pick(ALL_NAMES)
        ask = d.pick((f"My name is {name}.", f"I am {name}.", f"Hello, I am {name}.", f"Call me {name}."))
        return chat("talk", ask, ask, d.pick((f"Nice to meet you, {name}!", f"Hello, {name}! How can I help you?")))
    asks, answers = d.pick(lx.TALK)
    ask = d.pick(asks)
    return chat("talk", ask, ask, d.pick(answers).format(me=MODEL_NAME))


# ---------------------------------------------------------------- several turns


def dialogue(d: Draw) -> Example:
    """Two to five turns: unrelated ones, questions about a story just told, or something to remember."""
    r = d.random()
    if r < 0.35:
        s = Story(d)
        turns = [d.pick(lx.REQUESTS).format_map(s.fields), s.text]
        for _ in range(d.between(1, 2)):
            turns += s.question(d)
        if d.chance(0.3):
            turns += [d.pick(("Thank you!", "Thanks!", "Thank you very much.")), "You are welcome!"]
        return chat("dialogue", s.key, *turns)
    if r < 0.6:
        key, (name, noun) = d.keyed(lambda: (lambda p, n: (f"{p}|{n}", (p, n)))(d.pick(ALL_NAMES), d.pick(lx.NOUNS)))
        if d.chance(0.5):
            turns = [f"My name is {name}.", f"Nice to meet you, {name}!"]
            last = ["What is my name?", f"Your name is {name}."]
        else:
            thing = f"{d.pick(lx.COLOURS)} {noun}"
            turns = [f"I have {article(thing)}.", f"{article(thing).capitalize()}! How nice."]
            last = ["What do I have?", f"You have {article(thing)}."]
        for _ in range(d.between(0, 2)):
            turns += [m["content"] for m in d.pick(SHORT_KINDS)(d).messages]
        return chat("dialogue", key, *turns, *last)
    if r < 0.75:
        c = copy(d)
        again = d.pick(("Say that again.", "Again, please.", "Once more.", "Repeat that."))
        return chat("dialogue", c.key, c.messages[0]["content"], c.answer, again, c.answer)
    parts = [d.pick(SHORT_KINDS)(d) for _ in range(d.between(2, 5))]
    return chat("dialogue", parts[-1].key, *(m["content"] for p in parts for m in p.messages))


SHORT_KINDS = (copy, lookup, world_question, addition, subtraction, counting, fact, spell, talk)
# Share of the examples (not of the tokens) of each kind.
MIX: tuple[tuple[Callable[[Draw], Example], float], ...] = (
    (story, 0.16), (tell, 0.18), (passage, 0.12), (copy, 0.12), (echo, 0.02), (lookup, 0.08), (addition, 0.08),
    (subtraction, 0.06), (counting, 0.03), (fact, 0.03), (spell, 0.03), (talk, 0.03), (dialogue, 0.05),
)  # fmt: skip
KINDS: dict[str, Callable[[Draw], Example]] = {("count" if m is counting else m.__name__): m for m, _ in MIX}
CLOSED_KINDS = ("count", "fact", "spell", "talk")


def with_system(d: Draw, example: Example) -> Example:
    """Sets a system message before some chats; one that names the model is obeyed by "who are you"."""
    if not example.messages or not d.chance(0.25):
        return example
    system = d.pick(lx.SYSTEMS)
    messages = example.messages
    if example.kind == "talk" and d.chance(0.5):
        name = nonce_word(d).capitalize()
        system = f"Your name is {name}." if d.chance(0.5) else f"You are {name}, a helpful assistant."
        messages = tuple(
            {"role": m["role"], "content": m["content"].replace(f"I am {MODEL_NAME},", f"I am {name},").replace(
                f"My name is {MODEL_NAME}.", f"My name is {name}.")}
            for m in messages
        )  # fmt: skip
    return Example(
        example.kind, example.key, messages=({"role": "system", "content": system}, *messages), facts=example.facts
    )


def examples(seed: int, split: str = "train", kind: str | None = None) -> Iterator[Example]:
    """An endless stream of examples; the same arguments give the same stream, on any machine.

    Args:
        seed: any integer. Streams of different seeds are independent.
        split: "train" or "heldout".
        kind: one of `KINDS`, or None for the training mix.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {sorted(KINDS)} or None, got {kind!r}")
    d = Draw(seed, split)
    makers, weights = zip(*MIX)
    for _ in count():
        maker = KINDS[kind] if kind else d.rng.choices(makers, weights)[0]
        yield with_system(d, maker(d))


def main() -> None:
    parser = argparse.ArgumentParser(description="Print a few examples of the tiny model's corpus.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--kind", choices=sorted(KINDS))
    parser.add_argument("--count", type=int, default=5)
    args = parser.parse_args()
    for example in islice(examples(args.seed, args.split, args.kind), args.count):
        print(f"--- {example.kind} ({example.key!r})\n{example.document()}")


if __name__ == "__main__":
    main()
