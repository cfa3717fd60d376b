"""Checks draw fresh inputs; their tests use the same ones each time, so that a failure can be repeated."""

import os

import pytest

from ldm_mini.checks.properties import SEED


@pytest.fixture(autouse=True)
def same_inputs(monkeypatch):
    monkeypatch.setenv(SEED, os.environ.get(SEED, "0"))
