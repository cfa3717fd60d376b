"""Checks of notebook 18, conditions: tests of dropped labels and of a hole's condition, and how far captions differ."""

import torch

from .checking import attempt, compare, passed
from .n18_clinic import examine
from .properties import fresh, same_dtype, scalar


def _drop(how=""):
    """Dropping labels, with one thing changed."""
    def drop_labels(labels, null, p):
        coin = torch.rand(len(labels))
        drop = {"wrong side": coin > p, "one coin": coin[:1].expand(len(labels)) < p, "half": coin < 0.5,
                "the first": torch.arange(len(labels)) < p * len(labels)}.get(how, coin < p)
        if how == "compared":
            labels = labels.clone()
            labels[drop] == null  # noqa: B015
            return labels
        if how == "in place":
            labels[drop] = null
            return labels
        value = {"class 0": 0, "one less": null - 1}.get(how, null)
        mixed = labels[torch.randperm(len(labels))] if how == "mixed" else labels
        return torch.where(drop, torch.full_like(labels, value), mixed)
    return drop_labels


def _by_copy(labels, null, p):
    labels = labels.clone()
    labels[torch.rand(len(labels)) < p] = null
    return labels


def _by_arithmetic(labels, null, p):
    keep = torch.bernoulli(torch.full((len(labels),), 1 - p)).long()
    return keep * labels + (1 - keep) * null


def test_drop_labels(test):
    """`test(drop_labels)`: passes for a healthy drop_labels(labels, null, p), fails for a sick one."""
    examine(test, "test_drop_labels", {
        "torch.where": (_drop(),), "a copy, written into": (_by_copy,), "by arithmetic": (_by_arithmetic,),
    }, {
        "labels[drop] == null compares, and throws the answer away": ((_drop("compared"),), "How many are null?"),
        "the caller's labels are overwritten": ((_drop("in place"),), "Look, afterwards, at the labels that you gave: "
                                                "in a data set they are eaten, epoch by epoch."),
        "the wrong side of the coin": ((_drop("wrong side"),), "Take a p that is not 0.5, and count."),
        "one coin for the whole batch": ((_drop("one coin"),), "Each sample has its own coin: count in one batch."),
        "p is not used": ((_drop("half"),), "Take a p that is not 0.5, and count."),
        "always the first ones": ((_drop("the first"),), "The number is right: which ones are they?"),
        "they become class 0": ((_drop("class 0"),), "What do the dropped ones become?"),
        "they become the last class": ((_drop("one less"),), "What do the dropped ones become?"),
        "the others are mixed up": ((_drop("mixed"),), "Labels that are kept must be the ones that came."),
    }, "the right share, by chance, and nothing else")


def _condition(how=""):
    """What an inpainting network is told, with one thing changed."""
    def condition(image, mask):
        keep = mask if how == "inverted" else 1 - mask
        if how == "soft":
            keep = torch.nn.functional.avg_pool2d(keep, 3, 1, 1)
        masked = image if how == "open" else keep * image
        masked = {"mean": masked + mask * image.mean(), "gone": 0 * image,
                  "grey": masked.mean(1, keepdim=True).expand_as(image)}.get(how, masked)
        return masked if how == "no mask" else torch.cat([masked, mask], dim=1)
    return condition


def test_condition(test):
    """`test(condition)`: passes for a healthy condition(image, mask), mask 1 = hole; fails for a sick one."""
    black = lambda image, mask: torch.cat([image.masked_fill(mask > 0.5, -1.0), 2 * mask - 1], 1)
    other = "Change the picture inside the hole alone: nothing may change."
    examine(test, "test_condition", {
        "a grey hole": (_condition(),), "a black hole, and a mask of -1 and 1": (black,),
        "the mask in front": (lambda image, mask: torch.cat([mask, image * (1 - mask)], 1),),
    }, {
        "the mask is inverted": ((_condition("inverted"),), other),
        "the picture is given whole": ((_condition("open"),), other),
        "the hole's edge is soft": ((_condition("soft"),), "Change *all* of the hole, its edge too."),
        "the hole is filled with the mean of the whole picture": ((_condition("mean"),), other),
        "nothing of the picture is given": ((_condition("gone"),), "Change the picture outside: that must be seen."),
        "colours are lost": ((_condition("grey"),), "Outside of the hole, each number must be seen: exchange two "
                             "colours, or look for the values themselves."),
        "the mask is not given": ((_condition("no mask"),), "In a picture of one grey, can the hole still be found? "
                                                      "Try pictures that are 0 everywhere."),
    }, "the hole is closed, and known")


def caption_spread(function):
    """`function(context)`: (B,M,D) -> the share of its mean square that differs between captions, ()."""
    draw = fresh()
    for shape, size, common in (((5, 3, 4), 1.0, 1.0), ((4, 6, 2), 1e-3, 0.0), ((7, 2, 3), 30.0, 5.0)):
        context = size * (draw(*shape) + common * draw(1, *shape[1:]))
        mean = context.mean(0, keepdim=True)
        between, total = (context - mean).square().mean(), context.square().mean()
        got, what = scalar(attempt(function, context, name="caption_spread")), "caption_spread(context)"
        compare(got, between / total, what, rtol=1e-3, mistakes=[
            (context.var(1, unbiased=False).mean() / total, "this is how tokens differ *within* a caption. Positions "
             "alone do that; compare captions: dim=0."),
            (context.var(2, unbiased=False).mean() / total, "this is how the numbers of a token differ; compare "
             "captions: dim=0."),
            (context.var(unbiased=False) / total, "around the mean over everything; around the mean over captions."),
            (context.var(0).mean() / total, "divide by B, not by B - 1: unbiased=False."),
            (between, "divide by the mean square of all: else it depends on the size of the numbers."),
            (total / between, "upside down: 0 means that all captions are alike."),
            ((between / total).sqrt(), "the share of the square: no root."),
            (context.std(0, unbiased=False).mean() / total.sqrt(), "variances, not deviations."),
            (1 - between / total, "0 means that all captions are alike: yours is 1 then."),
            (between / context.var(unbiased=False), "divide by the mean square of all numbers."),
        ])
        same_dtype(got, context, what)
    alike = scalar(attempt(function, draw(1, 4, 3).expand(6, 4, 3).clone(), name="caption_spread"))
    compare(alike, torch.tensor(0.0), "caption_spread of captions that are all alike")
    passed("caption_spread: 0 where all captions are one")
