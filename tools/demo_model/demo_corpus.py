"""Make short English children's stories from a seed: the demo model's training text. Standard library only.

A story picks its people, a plot from demo_corpus_plots.py and one of many wordings for each sentence; names, pronouns
and objects are fixed once and used all through, which is what the model has to learn.

    python tools/demo_model/demo_corpus.py --stories 5 --seed 1
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator, Sequence

from demo_corpus_plots import PLOTS, Plot

BOYS = (
    "Tom",
    "Ben",
    "Max",
    "Sam",
    "Leo",
    "Jack",
    "Tim",
    "Oliver",
    "Noah",
    "Finn",
    "Henry",
    "Lucas",
    "Theo",
    "Oscar",
    "Adam",
    "Peter",
    "Daniel",
    "Milo",
    "Jake",
    "Hugo",
    "Owen",
    "Eli",
    "Felix",
    "Ravi",
    "Omar",
    "Paul",
    "David",
    "Anton",
)
GIRLS = (
    "Lily",
    "Anna",
    "Mia",
    "Emma",
    "Sara",
    "Lucy",
    "Ella",
    "Zoe",
    "Rose",
    "Molly",
    "Grace",
    "Ruby",
    "Alice",
    "Nora",
    "Maya",
    "Clara",
    "Ivy",
    "Amy",
    "Julia",
    "Kate",
    "Hana",
    "Sofia",
    "Lena",
    "Daisy",
    "Ada",
    "Jane",
    "Mary",
    "Sue",
)
HE_ANIMALS = (
    "Pip",
    "Bruno",
    "Button",
    "Rusty",
    "Barnaby",
    "Toby",
    "Digger",
    "Flint",
    "Wilbur",
    "Chester",
)
SHE_ANIMALS = (
    "Hazel",
    "Dot",
    "Fern",
    "Poppy",
    "Tilly",
    "Clover",
    "Maple",
    "Bella",
    "Pearl",
    "Willow",
)
PETS = ("Biscuit", "Rex", "Spot", "Coco", "Buddy", "Lucky", "Fluffy", "Snowy", "Patch", "Ginger", "Shadow", "Muffin")

WORDS: dict[str, Sequence[str]] = {
    "color": ("red", "blue", "green", "yellow", "purple", "orange", "white", "golden", "silver", "pink"),
    "acolor": ("a red", "a blue", "a green", "a yellow", "a purple", "an orange", "a white"),
    "fruit": ("apple", "pear", "plum", "orange", "pear"),
    "seek": (
        "under the bench",
        "behind the big tree",
        "in the tall grass",
        "by the gate",
        "near the pond",
        "behind the rocks",
        "in the bushes",
        "under the bridge",
        "next to the fence",
        "behind the wall",
    ),
    "place": (
        "the park",
        "the garden",
        "the forest",
        "the meadow",
        "the big field",
        "the old mill",
        "the woods",
        "the beach",
        "the old farm",
        "the lake",
        "the orchard",
        "the green valley",
        "the hills",
    ),
    "species": ("rabbit", "fox", "mouse", "bear", "duck", "squirrel", "hedgehog", "frog", "badger", "otter", "beaver"),
    "kind": ("dog", "dog", "dog", "puppy", "cat"),
    "size": ("little", "small", "young", "tiny"),
    "nature": ("kind", "brave", "curious", "cheerful", "clever", "gentle", "happy", "quiet", "friendly", "funny"),
    "like": (
        "to play outside",
        "to sing",
        "to explore",
        "to read books",
        "to laugh",
        "to help others",
        "to draw pictures",
        "to run in the wind",
        "to look at the clouds",
        "to ask questions",
        "to climb trees",
    ),
    "land": (
        "a small village",
        "a little house by the sea",
        "a quiet valley",
        "a little town",
        "a house on a hill",
        "a cottage near the forest",
        "a small house by the river",
        "a faraway land",
    ),
    "sky": ("sunny", "bright", "warm", "fine", "cool", "windy", "cloudy", "quiet", "beautiful", "lovely"),
    "season": ("summer", "spring", "autumn", "winter"),
    "daytime": ("morning", "afternoon", "day"),
}

# hero's adult: (after a possessive, how the hero calls, the word for the pronouns)
ADULTS = (
    ("mom", "Mom", "she"),
    ("dad", "Dad", "he"),
    ("grandma", "Grandma", "she"),
    ("grandpa", "Grandpa", "he"),
    ("mother", "Mother", "she"),
    ("father", "Father", "he"),
    ("aunt", "Auntie", "she"),
    ("uncle", "Uncle", "he"),
)
PRONOUNS = {"he": ("he", "him", "his"), "she": ("she", "her", "her")}

OPENINGS = (
    "Once upon a time, there [was|lived] {a_hero} [named|called] {h}. "
    "[{trait}|{trait2}|{trait} {trait2}] One {when}, {start}.",
    "Once upon a time, in {land}, there lived {a_hero} [named|called] {h}. [{trait}|{trait2}] One {when}, {start}.",
    "Once upon a time, {h}, {a_hero}, lived in {land}. [{trait}|{trait2}] One {when}, {start}.",
    "In {land}, there [lived|was] {a_hero} [named|called] {h}. "
    "[{trait}|{trait2}|{trait} {trait2}] One {when}, {start}.",
    "There was once {a_hero} [named|called] {h}. [{trait}|{trait2}] One {when}, {start}.",
    "{h} was {a_hero} who [lived in {land}|loved {like}]. [{trait}|{trait2}|] One {when}, {start}.",
    "One {when}, {start1}. {h} was {a_hero}, and {he} loved {like}.",
    "One {when}, {start1}.",
    "{weather}, and {start1}.",
)
PET_OPENINGS = (
    "{h} and {his} {kind} {p} [were best friends|did everything together|lived in {land}|loved to be outside]. "
    "[{trait}|{trait3}|] One {when}, {start}.",
    "{h} had a {kind} [named|called] {p}. [{trait3}|{p} followed {h} everywhere.] One {when}, {start}.",
    "Once upon a time, there was {a_hero} named {h}, who had a {kind} named {p}. [{trait3}|] One {when}, {start}.",
)
FRIEND_OPENINGS = (
    "{h} and {f} [were good friends|lived next door to each other|were neighbors]. "
    "[{trait}|{trait2}] One {when}, {start}.",
)

LONG_WORDS = 260  # a longer story is told again without its asides

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_KEY = re.compile(r"\{(\*?)(\w+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")


def _choose(text: str, rng: random.Random) -> str:
    """Resolve every `[a|b]`, the innermost first."""
    while (match := _CHOICE.search(text)) is not None:
        text = text[: match.start()] + rng.choice(match[1].split("|")) + text[match.end() :]
    return text


class _Teller:
    """The words of one story, and the means to fill a template with them."""

    def __init__(self, rng: random.Random, words: dict[str, str]) -> None:
        self.rng = rng
        self.words = words
        self._used: set[str] = set()

    def _pick(self, name: str) -> str:
        fresh = [w for w in WORDS[name] if w not in self._used] or list(WORDS[name])
        word = self.rng.choice(fresh)
        self._used.add(word)
        return word

    def _lookup(self, match: re.Match[str]) -> str:
        star, key = match.groups()
        if star:
            return self._pick(key)
        small = key[0].lower() + key[1:]
        value = self.words[small]
        return value if small == key else value[0].upper() + value[1:]

    def fill(self, template: str) -> str:
        """Return `template` with its choices made and its words put in."""
        text = _choose(template, self.rng)
        while _KEY.search(text):
            text = _choose(_KEY.sub(self._lookup, text), self.rng)
        return _ARTICLE.sub(r"\1n ", text)


def _add_person(words: dict[str, str], prefix: str, name: str, she: bool) -> None:
    """Add a person's name and pronouns: {h} {he} {him} {his} without a prefix, {f} {fe} {fim} {fis} with "f"."""
    words[prefix or "h"] = name
    endings = ("e", "im", "is") if prefix else ("he", "him", "his")
    words.update({prefix + end: word for end, word in zip(endings, PRONOUNS["she" if she else "he"], strict=True)})


def _cast(plot: Plot, rng: random.Random) -> dict[str, str]:
    """Choose who is in the story and what they are called."""
    words: dict[str, str] = {}
    animals = not plot.with_pet and not plot.children_only and rng.random() < 0.3
    she = rng.random() < 0.5
    friend_she = (not she) if rng.random() < 0.7 else she  # two people of one pronoun are harder to tell apart
    boys, girls = (HE_ANIMALS, SHE_ANIMALS) if animals else (BOYS, GIRLS)
    name = rng.choice(girls if she else boys)
    friend = rng.choice([n for n in (girls if friend_she else boys) if n != name])
    _add_person(words, "", name, she)
    _add_person(words, "f", friend, friend_she)
    _add_person(words, "p", rng.choice(PETS), rng.random() < 0.4)
    adult, call, pronoun = rng.choice([a for a in ADULTS if not animals or a[0] in ("mother", "father")])
    words.update(a=f"{words['his']} {adult}", adult=adult, av=call, av2=call)
    words.update(zip(("ae", "aim", "ais"), PRONOUNS[pronoun], strict=True))
    species = rng.choice(WORDS["species"])
    words["kind"] = rng.choice(WORDS["kind"])
    words["fkind"] = rng.choice(WORDS["species"]) if animals else ("girl" if friend_she else "boy")
    someone = species if animals else ("girl" if she else "boy")
    words["a_hero"] = f"a [{{size}}|{{nature}}|{{nature}} little|{{size}}] {someone}"
    for key in ("place", "size", "nature", "like", "land", "sky", "season", "daytime"):
        words[key] = rng.choice(WORDS[key])
    at = words["place"].split()[-1] in ("beach", "lake", "farm", "mill")
    words["in_place"] = f"{'at' if at else 'in'} {words['place']}"
    other = rng.choice([n for n in WORDS["nature"] if n != words["nature"]])
    words["trait"] = f"{{h}} was [very |always |]{other}[|, and everyone liked {{him}}| and {{*nature}}]."
    words["trait2"] = (
        "[{He} loved {like}.|{h} loved {like}.|{h} lived with {a}.|{He} lived there with {a}."
        "|{h} liked {like}, and {he} liked {place} most of all.]"
    )
    words["trait3"] = (
        "[{p} was a [small|big|funny|brown|white|clever] {kind}.|{h} loved {p} very much.|{p} was always hungry.]"
    )
    words["weather"] = "[It was a {sky} {season} {daytime}|The sun was shining|It was early in the {season}]"
    words["when"] = "[{sky} [{daytime}|morning|day]|day|{season} {daytime}|morning|day]"
    return words


def tell(plot: Plot, rng: random.Random, asides: float) -> str:
    """Return one story along `plot`; a step that may be left out is told with probability `asides`."""
    words = _cast(plot, rng)
    teller = _Teller(rng, words)
    for key in list(words):  # words that hold words: settle them once
        if key not in ("a_hero", "trait", "trait2", "trait3", "when", "weather"):
            words[key] = teller.fill(words[key])
    for key, template in plot.words.items():
        words[key] = teller.fill(template)
        words[f"{key}2"] = re.sub(r"^(an?|the) ", "the ", words[key])
    words["a2"] = words["a"][0].upper() + words["a"][1:]
    words["s"], words["s2"] = words["h"], words["h"]
    words["start1"] = teller.fill(plot.start)
    if rng.random() < 0.6:
        words["s"], words["s2"] = words["he"], words["him"]
        if plot.start.startswith(("{a}", "{s} and {his} friend {f} were", "{s} and {f}")) and rng.random() < 0.6:
            words["s"], words["s2"] = words["h"], words["h"]
    words["start"] = teller.fill(plot.start)
    if plot.with_pet:
        openings: tuple[str, ...] = PET_OPENINGS * 3 + OPENINGS[:1] + OPENINGS[6:]
    else:
        openings = OPENINGS * 2 + FRIEND_OPENINGS * (not plot.stranger)
    parts = [teller.fill(rng.choice(openings))]
    flowing = rng.random() < 0.35
    for step in plot.steps:
        if step == "/":
            if not flowing and rng.random() < 0.7:
                parts.append("\n\n")
        elif not step.startswith("?") or rng.random() < asides:
            parts.append(teller.fill(step.removeprefix("?")))
    text = " ".join(parts)
    text = re.sub(r" *\n\n *", "\n\n", text).strip()
    return re.sub(r" +", " ", text).replace("?.", "?").replace("?!", "?").replace("!.", "!").replace('?,"', '?"')


def stories(n_stories: int, seed: int) -> Iterator[str]:
    """Yield `n_stories` stories; story i depends on `seed` and i alone."""
    for index in range(n_stories):
        rng = random.Random(f"{seed}:{index}")
        plot = rng.choice(PLOTS)
        text = tell(plot, rng, asides=0.4)
        yield min(text, tell(plot, rng, asides=0.0), key=len) if len(text.split()) > LONG_WORDS else text


def names() -> list[str]:
    """Return every name a character can have."""
    return [*BOYS, *GIRLS, *HE_ANIMALS, *SHE_ANIMALS, *PETS]


def main() -> None:
    """Print stories, or what they are made of."""
    parser = argparse.ArgumentParser(description="Print stories of the demo corpus.")
    parser.add_argument("--stories", type=int, default=5, help="how many (default 5)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", action="store_true", help="print word counts instead of the stories")
    args = parser.parse_args()
    texts = list(stories(args.stories, args.seed))
    if args.count:
        lengths = sorted(len(t.split()) for t in texts)
        vocabulary = {w.lower() for t in texts for w in re.findall(r"[A-Za-z']+", t)}
        print(
            f"stories={len(texts)} distinct={len(set(texts))} words={sum(lengths)} vocabulary={len(vocabulary)} "
            f"shortest={lengths[0]} median={lengths[len(lengths) // 2]} longest={lengths[-1]}"
        )
        return
    print("\n\n---\n\n".join(texts))


if __name__ == "__main__":
    main()
