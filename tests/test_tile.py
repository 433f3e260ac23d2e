"""When rows are added for the linear layers, and how many."""

from __future__ import annotations

import mlx.core as mx
import pytest
from models import make_pair

from mlx_server.models import tile
from mlx_server.models.base import Row


@pytest.mark.parametrize(
    ("count", "spare"), [(1, 0), (3, 0), (4, 12), (8, 8), (16, 0), (17, 15), (200, 8)]
)
def test_padding_fills_the_last_tile_but_never_makes_one_of_few_rows(
    count: int, spare: int
) -> None:
    assert tile.padding(count, 16) == spare
    assert tile.padding(count, 1) == 0


def test_only_float32_on_a_cpu_with_openblas_has_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, quantised = (make_pair(bits=bits)[1].module for bits in (None, 4))
    half = make_pair()[1].module
    half.set_dtype(mx.bfloat16)
    on_cpu = mx.default_device() == mx.cpu
    monkeypatch.setattr(tile, "_has_openblas", lambda: True)
    assert tile.row_tile(plain) == (tile.OPENBLAS_TILE if on_cpu else 1)
    assert tile.row_tile(quantised) == tile.row_tile(half) == 1
    monkeypatch.setattr(tile, "_has_openblas", lambda: False)
    assert tile.row_tile(plain) == 1


def test_spare_rows_have_no_states() -> None:
    model = make_pair()[1]
    model.tile = 16
    seat = model.cache.open(8)
    hidden = model.hidden(mx.array([1, 2, 3, 4, 5]), [Row(seat, 5, 0)])
    model.cache.close(seat)
    assert hidden.shape == (5, model.module.args.hidden_size)
