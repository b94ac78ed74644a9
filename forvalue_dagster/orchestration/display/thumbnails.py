"""Small pictures of rows' images for the Dagster UI, only on request."""

from __future__ import annotations

import base64
import io

import dagster as dg
import polars as pl

from forvalue_dagster.data.images import PictureError, decode_picture

_SIDE = 96


def thumbnails(scores: pl.DataFrame, rows: pl.LazyFrame, count: int) -> dict[str, dg.MetadataValue]:
    """Show the first image of the most and of the least valuable rows that have one.

    Args:
        scores: value scores of a shard.
        rows: canonical rows of the shard.
        count: number of pictures of each kind.
    """
    with_images = rows.filter(pl.col("images").list.len() > 0)
    ranked = (
        scores.lazy()
        .filter(pl.col("status") == "scored")
        .join(with_images.select("row"), on="row", how="semi")
        .sort("value", descending=True)
        .select("row", "value")
        .collect()
    )
    if ranked.is_empty():
        return {}
    shown = {"most_valuable": ranked.head(count), "least_valuable": ranked.tail(count).reverse()}
    wanted = pl.concat(shown.values())["row"].unique()
    images = dict(
        with_images.filter(pl.col("row").is_in(wanted.implode()))
        .select("row", pl.col("images").list.first())
        .collect()
        .iter_rows()
    )
    return {
        f"{name}_images": dg.MetadataValue.md(
            "\n".join(
                f"![row {row}]({_thumbnail(images[row])}) row {row}, value {value:.3g}\n"
                for row, value in table.iter_rows()
            )
        )
        for name, table in shown.items()
    }


def _thumbnail(data: bytes) -> str:
    """Return a picture as a data URI; empty if the bytes are not an image."""
    try:
        picture = decode_picture(data)
    except PictureError:
        return ""
    picture.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
