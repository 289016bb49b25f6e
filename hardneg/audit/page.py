"""The audit as text and as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hardneg.audit.made import as_line
from miners.offline import MinedNegatives

EXAMPLES = 20
FEW_HIDDEN = 20  # hidden positives below which the interval is too wide to decide by
SHORT = 120  # characters of a text in a table
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse}
td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}
.n{text-align:right;font-variant-numeric:tabular-nums}
pre{white-space:pre-wrap}
.bar{background:#0072b2;height:.8rem;display:inline-block}.card{border-top:1px solid #ddd;padding:.7rem 0}
.p{border-left:4px solid #e69f00;padding-left:.6rem}.m{border-left:4px solid #0072b2;padding-left:.6rem}
.w{color:#a00;font-weight:600}img{max-width:100%}small{color:#666}
"""


def as_text(report: Mapping[str, Any]) -> str:
    """The audit in a few lines."""
    use = report["use"]
    lines = [
        f"{report['negatives']:,} negatives, {report['queries']:,} queries; {report['without_negatives']:,} have none",
        *(f"  {name:<22}{share:7.1%}" for name, share in (report["hardness"] or {}).items()),
        f"known positives among the negatives: {report['known_positives']}",
    ]
    if report["hardness"] is None:
        lines.insert(1, "  how hard they are is not known: the file has no scores; --model makes them")
    if report["equal_contents"] is not None:
        lines.append(f"negatives with a positive's content: {report['equal_contents']}")
    lines.append(
        f"{use['documents']:,} documents serve; the most used one {use['most']} times; the most used hundredth gives "
        f"{use['share_of_most_used_percent']:.1%}"
    )
    if (made := report.get("made")) is not None:
        lines.append(as_line(made))
    if (rate := report.get("false_negatives")) is not None:
        lines.append(rate_text(rate))
        if rate.get("other_weights"):
            lines.append(
                "  the model has other weights, or other prompts, than the table names: the rate is of that model"
            )
    if (reason := report.get("not_estimated")) is not None:
        lines.append(f"false-negative rate: not estimated; {reason}")
    for name in ("staleness", "guide"):
        if (seen := report.get(name)) is not None:
            told = "" if seen["correlation"] is None else f", correlation with the table {seen['correlation']:.3f}"
            lines.append(
                f"{name} ({seen['model']}): {seen['beats_the_positive']:.1%} of the negatives beat the positive, "
                f"{seen['still_hard']:.1%} are within 20 % of it{told}"
            )
    return "\n".join(lines)


def rate_text(rate: Mapping[str, Any]) -> str:
    """The false-negative rate in one sentence."""
    if not rate["hidden"]:
        return "false-negative rate: not to be had, no query has a second positive that could be hidden"
    little = "; few queries have a second positive to hide, so this says little" if rate["hidden"] < FEW_HIDDEN else ""
    return (
        f"false-negative rate: {rate['rate']:.1%} (95 %: {rate['low']:.1%} to {rate['high']:.1%}): {rate['passed']} of "
        f"{rate['hidden']} hidden positives came back as negatives{little}"
    )


def as_html(report: Mapping[str, Any], mined: MinedNegatives, examples: Sequence[Mapping[str, Any]]) -> str:
    """The audit as a page; everything that comes from the data is escaped."""
    hardness = "".join(
        f"<tr><td>{html.escape(name)}</td><td class=n>{share:.1%}</td>"
        f"<td><span class=bar style='width:{share * 20:.2f}rem'></span></td></tr>"
        for name, share in (report["hardness"] or {}).items()
    )
    used = "".join(
        f"<tr><td>{html.escape(str(name))}</td><td class=n>{count}</td><td>{html.escape(shortened(*text))}</td></tr>"
        for name, count, *text in report["use"]["most_used"]
    )
    dropped = "".join(
        f"<tr><td>{html.escape(rule)}</td><td class=n>{count:,}</td></tr>" for rule, count in report["dropped"].items()
    )
    cards = "".join(card(example) for example in examples)
    return f"""<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width,initial-scale=1">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Audit of mined negatives</title><style>{STYLE}</style>
<h1>Audit of mined negatives</h1><pre>{html.escape(as_text(report))}</pre>
<h2>How hard they are</h2><p>How far a negative scores below its query's lowest positive.</p>
<table>{hardness}</table>{picture(mined)}
<h2>What the rules dropped</h2><table>{dropped}</table>
<h2>Documents that serve most often</h2><table>{used}</table>
<h2>Examples</h2><p>The hardest negatives: those nearest to their positive, or above it, come first.</p>{cards}
</html>
"""


def shortened(text: str = "") -> str:
    """The beginning of a text."""
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"


def card(example: Mapping[str, Any]) -> str:
    """One query with its positive and a negative; a file may have no scores."""
    score, positive = example["score"], example["positive_score"]
    known = score is not None and positive is not None
    warn = " class=w" if known and score > positive else ""
    near, far = (f"{positive:.4f}", f"{score:.4f}, ") if known else ("", "")
    return (
        f"<div class=card><b>{html.escape(str(example['query']))}</b>"
        f"<div class=p>{html.escape(str(example['positive']))} <small>{near}</small></div>"
        f"<div class=m>{html.escape(str(example['negative']))} <small{warn}>{far}"
        f"rank {example['rank']}, {html.escape(str(example['source']))}</small></div></div>"
    )


def picture(mined: MinedNegatives) -> str:
    """The spread of scores as an inline picture; nothing for a table without scores."""
    if not len(mined) or mined.table["score"].null_count == len(mined) or np.isnan(mined.positives[1]).any():
        return ""
    file = io.BytesIO()
    mined.plot().savefig(file, format="png", dpi=120)
    data = base64.b64encode(file.getvalue()).decode()
    return f"<p><img alt='scores of positives and negatives' src='data:image/png;base64,{data}'></p>"


def hardest(
    mined: MinedNegatives, queries: Mapping[Any, str] | None, corpus: Mapping[Any, str] | None
) -> list[dict[str, Any]]:
    """The negatives nearest to (or above) their positive, at most one for each query."""
    valid = mined.table["doc_id"].is_valid()
    table = mined.table.filter(valid)
    gap = table["positive_score"].to_numpy() - table["score"].to_numpy()
    owner = mined.query_of[valid.to_numpy()]
    order = np.argsort(gap, kind="stable")
    _, first = np.unique(owner[order], return_index=True)
    chosen = order[np.sort(first)][:EXAMPLES]
    rows = table.take(chosen).to_pylist()
    for row, query in zip(rows, owner[chosen].tolist(), strict=True):
        known = mined.queries.slice(query, 1).to_pylist()[0]
        scores = np.array(known["positive_scores"], dtype=float)
        lowest = known["positive_ids"][0 if np.isnan(scores).all() else int(np.nanargmin(scores))]
        row["query"] = queries[row["query_id"]] if queries else row["query_id"]
        row["positive"] = corpus[lowest] if corpus else lowest
        row["negative"] = corpus[row["doc_id"]] if corpus else row["doc_id"]
    return rows
