"""What llama.cpp's samplers are called: on its command line, in bodies, by letters."""

from __future__ import annotations

from mlx_server.sampling_params import SAMPLERS

LETTERS = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "f": "tfs_z",
    "y": "typical_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
}

PASSED_OVER = {"i": "infill", "a": "adaptive_p"}
"""Today's samplers that are not here. Clients for editors name the first one in every request."""

_ALIASES = {
    "tfs": "tfs_z",
    "typ_p": "typical_p",
    "typical": "typical_p",
    "typ": "typical_p",
    "temp": "temperature",
    "nucleus": "top_p",
    "topk": "top_k",
    "topp": "top_p",
    "minp": "min_p",
    "top_nsigma": "top_n_sigma",
}


def canonical(name: str) -> str | None:
    """A sampler's name as it is in `SAMPLERS`; None for one that is passed over.

    Raises:
        ValueError: There is none of that name.
    """
    plain = name.strip().lower().replace("-", "_")
    plain = _ALIASES.get(plain, plain)
    if plain in PASSED_OVER.values():
        return None
    if plain not in SAMPLERS:
        raise ValueError(f"there is no sampler {name[:40]!r}; there are {';'.join(SAMPLERS)}")
    return plain


def named(names: list[str]) -> tuple[str, ...]:
    """Samplers in the order of their names. Raises ValueError."""
    found = (canonical(name) for name in names if name.strip())
    return tuple(name for name in found if name is not None)


def lettered(letters: str) -> tuple[str, ...]:
    """llama.cpp's short form, as in kfypmt. Raises ValueError."""
    for letter in letters:
        if letter not in LETTERS and letter not in PASSED_OVER:
            known = ", ".join(f"{k} {v}" for k, v in LETTERS.items())
            raise ValueError(f"there is no sampler {letter!r}; there are {known}")
    return tuple(LETTERS[letter] for letter in letters if letter in LETTERS)
