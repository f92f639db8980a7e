"""Tests: hostile inputs, the corpus of published blocks, random networks, and the suites that use them."""
