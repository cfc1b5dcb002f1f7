"""Figures by category of prompts, and their unweighted mean over categories, as the paper reports them.

Of SPEED-Bench it reports two means, over all categories and over four of them (docs/method.md, "Evaluation figures").
Pooled figures weigh a category by its tokens and cycles: one with many long answers decides them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from nld_train.decoding.algorithms.outputs import DecodeResult
from nld_train.decoding.algorithms.statistics import merged, one_sequence
from nld_train.evaluation.measure import Figures

CATEGORIES, MEAN = "categories", "mean_over_categories"
# Of SPEED-Bench (arXiv 2604.09557).
SPEED_BENCH = (
    "coding",
    "humanities",
    "math",
    "multilingual",
    "qa",
    "rag",
    "reasoning",
    "roleplay",
    "stem",
    "summarization",
    "writing",
)
FOUR = ("coding", "math", "reasoning", "multilingual")
MEAN_OF_FOUR = f"mean_over_{'_'.join(FOUR)}"
# Names of both means in tables.
MEANS = {MEAN: "mean over categories", MEAN_OF_FOUR: f"mean over {', '.join(FOUR)}"}
# Everything else in figures is a rate, of which a mean over categories can be taken.
_COUNTS = ("new_tokens", "forwards", "turns", "skipped_turns")


def pooled_and_by_category(
    prompts: int, categories: Sequence[str], figures_of: Callable[[Sequence[int]], Figures]
) -> Figures:
    """The figures of all prompts, and where they have categories, those of each and their mean.

    Args:
        prompts: number of prompts.
        categories: one for each prompt; empty where prompts have none.
        figures_of: from indices of prompts to their figures.

    Returns:
        The pooled figures; with categories also `categories` (name -> figures) and what `category_means` returns.
    """
    pooled = figures_of(range(prompts))
    if not categories:
        return pooled
    found = {
        name: figures_of([index for index, category in enumerate(categories) if category == name])
        for name in dict.fromkeys(categories)
    }
    return {**pooled, CATEGORIES: found, **category_means(found)}


def category_means(categories: Mapping[str, Figures]) -> Figures:
    """Both means of figures by category.

    Returns:
        `mean_over_categories`, of all; and where each of `FOUR` has new tokens, the mean over these under
        `MEAN_OF_FOUR`.
    """
    means = {MEAN: mean_figures(categories)}
    four = {name: categories[name] for name in FOUR if name in categories and categories[name]["new_tokens"]}
    return means | {MEAN_OF_FOUR: mean_figures(four)} if len(four) == len(FOUR) else means


def missing_of_speed_bench(categories: Mapping[str, Figures]) -> list[str]:
    """The categories of SPEED-Bench without any new tokens, where all others are its own: the mean is then not its."""
    if not set(categories) <= set(SPEED_BENCH):
        return []
    return [name for name in SPEED_BENCH if name not in categories or not categories[name]["new_tokens"]]


def mean_figures(categories: Mapping[str, Figures]) -> Figures:
    """Unweighted means over the categories in which anything was decoded; None for a figure that none of them has."""
    decoded = [figures for figures in categories.values() if figures["new_tokens"]]
    names = dict.fromkeys(name for figures in decoded for name in figures if name not in _COUNTS)
    return {name: _mean([figures[name] for figures in decoded if figures[name] is not None]) for name in names}


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def selected(result: DecodeResult, indices: Sequence[int]) -> DecodeResult:
    """Some sequences of a result, each as if decoded alone."""
    return merged([one_sequence(result, index) for index in indices])
