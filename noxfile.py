"""What is asked of a change, each part in its own environment: `nox`, or one part as in `nox -s tests-3.12`."""

from __future__ import annotations

import nox

PYTHONS = ["3.11", "3.12", "3.13"]  # as `requires-python` has them
nox.options.sessions = ["lint", "types", "docs", "tests"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False  # here; the public CI has all three


def prepare(session: nox.Session) -> None:
    """Install the checkout and all that is needed to work on it."""
    session.install("-e", ".[dev]")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The fast tests; other ones as in `nox -s tests-3.12 -- -m slow`."""
    prepare(session)
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session(python=PYTHONS[0])
def coverage(session: nox.Session) -> None:
    """Which lines and branches the fast tests run."""
    prepare(session)
    session.run("pytest", "-n", "2", "--cov", "--cov-report=term:skip-covered", *session.posargs)


@nox.session(python=PYTHONS[0])
def lint(session: nox.Session) -> None:
    """Lint and format."""
    prepare(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python=PYTHONS[0])
def types(session: nox.Session) -> None:
    """Types, strictly."""
    prepare(session)
    session.run("mypy")


@nox.session(python=PYTHONS[0])
def docs(session: nox.Session) -> None:
    """The docs site, strictly."""
    prepare(session)
    session.run("mkdocs", "build", "--strict")
