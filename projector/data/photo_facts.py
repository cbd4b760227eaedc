"""What may be said about a photograph, given the probabilities of the 1000 ImageNet classes.

Classes are summed by their everyday noun first ("tabby cat", "tiger cat", ... are all "cat"), because a tower
that cannot decide between five cats is still sure that it sees a cat; and classes whose photographs nearly
always show a person (a helmet, a uniform, a sledge) are summed into "person".

What is said of a thing is drawn by how likely it is, not always the likeliest: of many draws a model learns to be as sure as
the classes are, and no surer. Its likeliest answer stays the same.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from projector.data.existence import exists
from projector.data.imagenet_names import CLASSES
from projector.data.samples import QA
from projector.data.scene_grammar import with_article

PRESENT, ABSENT = 0.35, 0.03  # sums of probability above which a thing is rather there, below which it is not
SURE = 0.55
RIVAL = 0.6  # times the first thing's probability, from which a second one is as good a guess: both are said
# A helmet, a sledge and a jersey, none of them certain, are somebody: from this sum, and so many times any one of them.
SOMEBODY, FAR = 0.2, 1.5


@dataclass(frozen=True)
class PhotoFacts:
    """The everyday noun with the largest probability, and what surrounds it."""

    noun: str
    mass: float  # probability of the noun, 0-1
    kind: str | None  # the specific class, where it stands out among those of its noun
    person: float  # probability that a person is in the picture
    masses: dict[str, float]  # of every everyday noun
    groups: dict[str, float]  # of "animal", "vehicle", ...


def photo_facts(probabilities: np.ndarray) -> PhotoFacts:
    """probabilities (1000,), summing to 1."""
    masses: dict[str, float] = {}
    groups: dict[str, float] = {}
    person = 0.0
    for entry, p in zip(CLASSES, probabilities.tolist(), strict=True):
        masses[entry.basic] = masses.get(entry.basic, 0.0) + p
        groups[entry.group] = groups.get(entry.group, 0.0) + p
        person += p if entry.person_likely else 0.0
    noun = max(masses, key=lambda name: masses[name])
    index = max((i for i, c in enumerate(CLASSES) if c.basic == noun), key=lambda i: probabilities[i])
    share = float(probabilities[index]) / max(masses[noun], 1e-9)
    kind = CLASSES[index].noun
    stands_out = share > 0.5 and masses[noun] > PRESENT and kind != noun
    return PhotoFacts(noun, masses[noun], kind if stands_out else None, person, masses, groups)


def caption(facts: PhotoFacts, length: str, rng: random.Random) -> str:
    """A caption that is as sure as the probabilities are."""
    subject = subject_of(facts)
    sure = facts.person if subject == "person" else facts.mass
    others = sorted((n for n in facts.masses if n != subject), key=lambda name: -facts.masses[name])
    tied = (
        subject != "person" and facts.masses[others[0]] > RIVAL * sure
    )  # a helmet is no rival of its wearer
    either = [subject, others[0]] if tied else [drawn(facts, rng)]
    subject = either[0]
    others = [name for name in others if name not in either]
    said = " or ".join(map(with_article, either))
    if length == "short":
        return f"{_capital(said)}."
    if sure < PRESENT:
        first = f"A photo, perhaps of {said}."
        return first if length == "normal" else f"{first} It may also show {with_article(others[0])}."
    if len(either) > 1:
        return f"A photo of {said}."
    if facts.person > PRESENT and facts.noun != subject:
        if length == "normal" or facts.mass < 0.15:
            return "A photo of a person."
        return f"A photo of a person, perhaps with {with_article(facts.noun)}."
    kind = facts.kind if subject == facts.noun else None
    if length == "normal":
        named = kind if kind and facts.mass > SURE else subject
        return f"A photo of {with_article(named)}."
    second = f" It looks like {with_article(kind)}." if kind else ""
    return f"A photo of {with_article(subject)}.{second}"


def subject_of(facts: PhotoFacts) -> str:
    """What the picture is of: the noun, unless a person is more certain than any thing."""
    somebody = facts.person > PRESENT or facts.person > max(SOMEBODY, FAR * facts.mass)
    return "person" if somebody and facts.person > facts.mass else facts.noun


def drawn(facts: PhotoFacts, rng: random.Random) -> str:
    """A thing that the picture may be of, each as often as it is likely."""
    if subject_of(facts) == "person" and there(facts.person, rng, SOMEBODY):
        return "person"
    return rng.choices(list(facts.masses), list(facts.masses.values()))[0]


def there(mass: float, rng: random.Random, even: float = PRESENT) -> bool:
    """Whether a thing is said to be there: as often as not at `even`, for it shares its sum with all that is beside it."""
    return rng.random() < mass / (2 * even)


def questions(facts: PhotoFacts, rng: random.Random, count: int) -> list[QA]:
    """Turns about the main subject, and about things that are likely there or certainly not."""
    turns = [QA(rng.choice(WHAT), with_article(drawn(facts, rng)), "name") for _ in range(2)]
    second = max((noun for noun in facts.masses if noun != facts.noun), key=lambda noun: facts.masses[noun])
    for noun in (facts.noun, facts.noun, second):
        if facts.masses[noun] > ABSENT:
            turns.append(exists(noun, there(facts.masses[noun], rng), rng))
    if facts.person > ABSENT:
        turns.append(exists("person", there(facts.person, rng, SOMEBODY), rng))
    elif facts.groups.get("person", 0) < ABSENT:
        turns.append(exists("person", False, rng))
    absent = [name for name, mass in facts.masses.items() if mass < ABSENT / 3]
    group = next(c.group for c in CLASSES if c.basic == facts.noun)
    near = [c.basic for c in CLASSES if c.group == group and facts.masses[c.basic] < ABSENT / 3]
    for pool in (near, near, absent):
        if pool:
            turns.append(exists(rng.choice(pool), False, rng))
    if facts.kind and facts.mass > SURE:
        turns.append(QA(f"What kind of {facts.noun} is it?", with_article(facts.kind), "kind"))
    if group in GROUPS and (facts.groups[group] > 0.6 or facts.groups[group] > 0.4 and rng.random() < 0.5):
        turns.append(QA(f"Is it {with_article(group)}?", "yes", "group"))
        other = rng.choice([name for name in GROUPS if name != group])
        if facts.groups.get(other, 0.0) < ABSENT:
            turns.append(QA(f"Is it {with_article(other)}?", "no", "group"))
    return rng.sample(turns, min(count, len(turns)))


WHAT = (
    "What is this?",
    "What is in the picture?",
    "What is in the image?",
    "What does the photo show?",
    "what is this",
    "What do you see?",
    "What is the main thing in the picture?",
)
GROUPS = ("animal", "vehicle", "building", "tool", "plant")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
