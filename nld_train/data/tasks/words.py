"""Random words of a list: animals, food, colours, the body, things, nature.

A tiny model learns the words in a minute; which of them, and in which order, is random, so that no answer can be known
by heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

_LIST = """
ant bat bear bee bird cat cow crab crow deer dog duck eagle eel fish fly fox frog goat hawk hen horse lion mole moth
mouse owl pig rat seal shark sheep snake swan tiger toad wasp whale wolf worm
apple bean beet berry bread cake candy cheese corn cream egg fig grape honey juice lemon lime melon milk mint nut
olive onion pasta peach pear pepper plum rice salt soup sugar tea toast tomato
black blue brown gold green grey pink purple red silver white yellow
arm back bone chin ear elbow eye face finger foot hair hand head heart knee leg lip mouth neck nose skin thumb toe
tooth
bed bell boat book bottle bowl box brick broom brush bus car chair clock coat cup desk door drum flag fork glass
glove hammer hat house key knife lamp map mirror nail paper pen phone piano plate ring rope shirt shoe sock spoon
table tent torch train truck watch wheel window
air beach cave cloud dust earth field fire flower forest grass hill ice island lake leaf moon mud ocean path rain
river road rock sand sea sky snow star stone storm sun tree valley water wave wind wood
"""
WORDS = tuple(_LIST.split())


def random_words(random: Random, counts: Sequence[int]) -> list[str]:
    """Different words; how many is one of `counts`."""
    return random.sample(WORDS, k=random.choice(counts))
