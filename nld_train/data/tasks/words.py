"""Random words of a list: animals, food, colours, the body, things, nature.

All have four letters: where a letter of an answer stands in the question then follows from its position, which many
positions can find at once, and not only one after the other. A tiny model learns the words in a minute; which of them,
and in which order, is random, so that no answer can be known by heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

_LIST = """
bear bird boar bull calf carp clam colt crab crow deer dove duck fish fowl frog gnat goat gull hare hawk kiwi lamb lark
lion lynx mink mole moth mule newt pike pony puma seal slug swan toad tuna vole wasp wolf worm wren
bean beef beet cake chop corn date kale leek lime meat milk mint pear plum pork rice roll salt soup stew
blue cyan gold grey jade navy pink rose ruby teal
back bone brow chin face foot hair hand head heel knee nail neck nose palm shin skin sole
bell belt boat book boot bowl cart cell coat coin cork desk dish door drum flag fork gate gift glue hook horn
jeep kite knob lamp lens lock mask oven pipe pump rope ring sail shoe sink sock sofa tent vase vest wire yarn
bush cave clay coal cove dawn dune dusk dust fire hail hill lake lava lawn leaf mist moon moss path peak pine pond rain
reef road rock root sand seed snow star tide tree twig wave weed wind wood
"""
WORDS = tuple(_LIST.split())


def random_words(random: Random, counts: Sequence[int]) -> list[str]:
    """Different words; how many is one of `counts`."""
    return random.sample(WORDS, k=random.choice(counts))
