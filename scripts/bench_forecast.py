"""LightGBM quantile regression on lag features against foreshard's own forecasts; started by `scripts/bench-peers forecast`.

Series, grid, windows and scores follow `foreshard evaluate`. One model a level is fitted over all series of the history, on what each
has before its own first window; a window is forecast from what its series has before it. Both forecasters are scored by the code below.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from types import SimpleNamespace

import lightgbm
import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet as parquet

LEVELS = np.arange(1, 10) / 10
COLUMNS = [f"q{level:g}" for level in LEVELS]
METRICS = ["cpu_util", "mem_util", "io_ops", "latency_ms", "txn_rate", "value"]
DAY = 86_400_000
TREES, LEAVES, ROWS = 120, 31, 45_000
EQUAL, LEAST_SCALED_LOSS, DRAWS = 1e-9, 1e-3, 1000
BUILTIN = {"5T": dict(step="5m", horizon=48, windows=12, max_series=60), "15T": dict(step="15m", horizon=96, windows=7, max_series=60)}
# Of a protocol file: what may be left out, what must be there, and what changes nothing here.
DEFAULTS = dict(target="first", stride=None, season="1d", bounds="load", scale="first_window", max_series=None)
NEEDED, IGNORED = ("step", "horizon", "windows"), ("levels", "refit", "event")
KNOWN = dict(target=["first", *METRICS], bounds=["load", "none"], scale=["first_window"])
UNITS = {"ms": 1, "s": 1000, "sec": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "hour": 3_600_000, "d": DAY, "day": DAY, "w": 7 * DAY}


def fail(what):
    print(f"error: {what}", file=sys.stderr)
    sys.exit(2)


def duration(text):
    """Milliseconds of 5m, 1d or 1h 30m."""
    parts = [(int(n), unit if unit in UNITS else unit.rstrip("s")) for n, unit in re.findall(r"(\d+)\s*([a-z]+)", str(text))]
    if any(unit not in UNITS for _, unit in parts) or sum(n for n, _ in parts) == 0:
        fail(f"protocol: {text!r} is no duration; use 5m or 1d")
    return sum(n * UNITS[unit] for n, unit in parts)


def read_protocol(name):
    """A built-in protocol or one from a TOML file: its keys, step in milliseconds, season in steps."""
    raw = BUILTIN.get(name)
    if raw is None:
        if not Path(name).is_file():
            fail(f"no protocol {name!r}; known are {' and '.join(BUILTIN)}, anything else is the path of a TOML file")
        try:
            raw = tomllib.loads(Path(name).read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            fail(f"protocol {name}: {error}")
    wrong = [f"{key}: unknown" for key in raw if key not in DEFAULTS and key not in NEEDED + IGNORED]
    wrong += [f"{key}: missing" for key in NEEDED if key not in raw]
    p = SimpleNamespace(name=name, **{**DEFAULTS, **dict.fromkeys(NEEDED, 1), **raw})
    p.stride = p.horizon if p.stride is None else p.stride
    counts = dict(horizon=p.horizon, windows=p.windows, stride=p.stride, max_series=p.max_series or 1)
    wrong += [f"{key}: must be a whole number from 1 on, not {n!r}" for key, n in counts.items() if not isinstance(n, int) or n < 1]
    wrong += [f"{key}: must be {' or '.join(known)} here, not {vars(p)[key]!r}" for key, known in KNOWN.items() if vars(p)[key] not in known]
    if wrong:
        fail(f"protocol {name}: {'; '.join(wrong)}")
    p.step, season = duration(p.step), duration(p.season)
    if season % p.step:
        fail(f"protocol {name}: season {p.season} is no multiple of the step")
    p.season = season // p.step
    return p


class Series:
    """A series on the grid (NaN = missing) with its windows at the end."""

    def __init__(self, shard, metric, start, values, p):
        self.shard, self.metric, self.start, self.values, self.p = shard, metric, start, values, p
        self.first = len(values) - (p.windows - 1) * p.stride - p.horizon
        self.origins = self.first + p.stride * np.arange(p.windows)

    def truth(self):
        return self.values[self.origins[:, None] + np.arange(self.p.horizon)]

    def scale(self):
        """Mean absolute difference to a season earlier, before the first window; NaN if there is none."""
        y = self.values[: self.first]
        d = np.abs(y[self.p.season:] - y[: -self.p.season])
        d = d[np.isfinite(d)]
        return d.mean() if len(d) and d.mean() > EQUAL else np.nan

    def filled(self):
        """Gaps take the value of a season earlier, else the last one: nothing from after the gap."""
        y = self.values.copy()
        for i in np.flatnonzero(~np.isfinite(y)):
            y[i] = y[i - self.p.season] if i >= self.p.season else y[i - 1] if i else 0.0
        return y


def to_grid(ts, values, step, native):
    """Means of the bins [k step, (k + 1) step); a bin that the samples enter late or leave early is cut off."""
    bins = ts // step
    low = bins[0] + (bins[0] * step < ts[0])
    high = bins[-1] - ((bins[-1] + 1) * step - native > ts[-1])
    if high < low:
        return None
    inside = (bins >= low) & (bins <= high)
    place, n = bins[inside] - low, int(high - low + 1)
    counts = np.bincount(place, minlength=n)
    sums = np.bincount(place, weights=values[inside], minlength=n)
    return low * step, np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def read_table(path, needed, wanted, what):
    """Columns of a Parquet file, times as milliseconds; what is needed must be there, complete and of its type."""
    if not path.is_file():
        fail(f"{what} {path} is not there, or is no file; it must be one Parquet file")
    try:
        names = parquet.read_schema(path).names
        missing = [c for c in needed if c not in names]
        if missing:
            fail(f"{what} {path} has no column {', '.join(missing)}; its columns are {', '.join(names)}")
        table = parquet.ParquetFile(path).read(columns=[c for c in names if c in needed or c in wanted]).to_pandas()
        for column in needed:
            if table[column].isna().any():
                fail(f"{what} {path}: {column} is missing in some rows")
            if column in ("ts", "issued_at", "target_ts"):
                if not pd.api.types.is_datetime64_any_dtype(table[column]):
                    fail(f"{what} {path}: {column} must be a timestamp, not {table[column].dtype}")
                times = pd.to_datetime(table[column], utc=True).dt.tz_localize(None)
                table[column] = times.to_numpy().astype("datetime64[ms]").astype(np.int64)
            elif column != "shard_id" and not pd.api.types.is_numeric_dtype(table[column]):
                fail(f"{what} {path}: {column} must be a number, not {table[column].dtype}")
        table["shard_id"] = table["shard_id"].astype(str)
        return table
    except (OSError, pyarrow.ArrowException) as error:
        fail(f"{what} {path} cannot be read: {error}")


def read_series(path, p):
    """The series of the protocol, in the order of their names, and what is left out and why."""
    table = read_table(path, ["shard_id", "ts"], METRICS, "history")
    wanted = ["cpu_util", "txn_rate", "value"] if p.target == "first" else [p.target]
    wanted = [c for c in wanted if c in table]
    table[wanted] = table[wanted].apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan)
    table = table.drop_duplicates(["shard_id", "ts"], keep="last").sort_values(["shard_id", "ts"])
    gaps = table.groupby("shard_id")["ts"].diff().min()
    native = p.step if np.isnan(gaps) else int(gaps)
    found, left, taken = [], [], 0
    for shard, rows in table.groupby("shard_id"):
        if p.max_series is not None and taken >= p.max_series:
            break
        metric = next((c for c in wanted if rows[c].notna().any()), None)
        if metric is None:
            left.append((shard, "it has no value of the target"))
            continue
        taken += 1
        if native > p.step:
            left.append((shard, "its rows lie further apart than the steps of the protocol"))
            continue
        rows = rows[rows[metric].notna()]
        grid = to_grid(rows["ts"].to_numpy(), rows[metric].to_numpy(np.float64), p.step, native)
        series = grid and Series(shard, metric, *grid, p)
        if not series or series.first < 2 * p.season or np.isfinite(series.values[: series.first]).sum() < p.season:
            left.append((shard, "too little lies before its first window"))
        elif not np.isfinite(series.truth()).any():
            left.append((shard, "nothing was measured in its windows"))
        else:
            found.append(series)
    if not found:
        why = "; ".join(f"{shard}: {reason}" for shard, reason in left[:3]) or "it has no rows"
        fail(f"no series of {path} is long enough for protocol {p.name} ({why})")
    return found, left


class Lags:
    """The inputs of the regression, for any origins and steps of one series; each from values before its origin alone."""

    def __init__(self, series):
        self.p, self.start, self.y = series.p, series.start, series.filled()
        centred = self.y - self.y[0]  # so that sums of squares keep their digits
        self.sums = np.concatenate([[0.0], np.cumsum(centred)])
        self.squares = np.concatenate([[0.0], np.cumsum(centred**2)])

    def at(self, i):
        """Values at places; NaN before the start."""
        return np.where(i >= 0, self.y[np.maximum(i, 0)], np.nan)

    def span(self, a, b):
        """Mean and deviation of y[a..b], as far as it is there; NaN if nothing is."""
        a, b = np.maximum(a, 0), np.maximum(b, 0)
        n = np.where(b > a, b - a, np.nan)
        mean = (self.sums[b] - self.sums[a]) / n
        square = (self.squares[b] - self.squares[a]) / n
        return mean + self.y[0], np.sqrt(np.maximum(square - mean**2, 0.0))

    def __call__(self, origin, step):
        """Inputs [n, 21] for targets at origin + step, and the mean and deviation by which they and the targets are scaled."""
        s, half = self.p.season, max(self.p.season // 48, 1)
        # The newest place a whole number of periods before the target that lies before the origin.
        lag = lambda period: origin + step - (step // period + 1) * period
        smooth = lambda i: np.where(i >= 0, self.span(i - half, np.minimum(i + half + 1, origin[:, None]))[0], np.nan)
        days = lag(s)[:, None] - s * np.arange(7)
        weeks = lag(7 * s)[:, None] - 7 * s * np.arange(4)
        earlier = origin[:, None] - s * np.arange(1, 8)
        slots, smoothed, before = self.at(days), smooth(days), self.span(earlier - 12, earlier)[0]
        last = self.span(origin - 12, origin)
        loc, scale = self.span(origin - 7 * s, origin)
        scale = scale + floor_of(loc)
        levels = [self.at(lag(k * s)) for k in (1, 2, 7, 14)]
        levels += [mean_of(slots), np.nanmax(slots, axis=1, initial=-np.inf), mean_of(self.at(weeks)), smoothed[:, 0], mean_of(smoothed)]
        levels += [self.y[origin - 1], self.span(origin - 3, origin)[0], last[0], self.span(origin - s, origin)[0]]
        spreads = [np.sqrt(mean_of((slots - mean_of(slots)[:, None]) ** 2)), last[0] - mean_of(before), last[1]]
        time = (self.start + (origin + step) * self.p.step) / DAY
        angles = 2 * np.pi * np.stack([time % 1.0, time % 7.0 / 7.0])
        scaled = [(x - loc) / scale for x in levels] + [x / scale for x in spreads]
        return np.stack([*scaled, *np.sin(angles), *np.cos(angles), step], axis=1), loc, scale


def floor_of(loc):
    """Least scale beside a mean."""
    return 1e-3 * np.abs(loc) + 1e-6


def mean_of(x):
    """Mean of each row over what is there."""
    there = np.isfinite(x)
    return np.where(there, x, 0.0).sum(1) / np.where(there.any(1), there.sum(1), np.nan)


def training_rows(series, count, random):
    """Origins and steps, each pair as likely as any other: a season lies before the origin, and the target before the first window."""
    p = series.p
    targets = p.season + np.flatnonzero(np.isfinite(series.values[p.season : series.first]))
    tries = 4 * count if len(targets) else 0
    target, step = random.choice(targets, tries), random.integers(0, p.horizon, tries)
    return np.stack([target - step, step])[:, target - step >= p.season][:, :count]


def forecast(series, p, seed, threads):
    """Quantiles [series, window, step, level]."""
    random, inputs, targets = np.random.default_rng(seed), [], []
    lags = [Lags(s) for s in series]
    for s, of in zip(series, lags):
        origin, step = training_rows(s, -(-ROWS // len(series)), random)
        x, loc, scale = of(origin, step)
        moved = scale > 2 * floor_of(loc)  # after seven days that stand still any change would be huge
        inputs.append(x[moved])
        targets.append(((s.values[origin + step] - loc) / scale)[moved])
    if not sum(map(len, targets)):
        fail("there is nothing to learn from: no series moves within a season of values before its first window")
    data = lightgbm.Dataset(np.concatenate(inputs), np.concatenate(targets), params={"verbosity": -1}, free_raw_data=False)
    print(f"LightGBM {lightgbm.__version__}: {data.data.shape[0]} rows of {len(series)} series, seed {seed}", file=sys.stderr)
    settings = dict(objective="quantile", num_leaves=LEAVES, seed=seed, deterministic=True, force_row_wise=True,
                    num_threads=threads, verbosity=-1)
    models = [lightgbm.train({**settings, "alpha": level}, data, TREES) for level in LEVELS]
    out = np.empty((len(series), p.windows, p.horizon, len(LEVELS)))
    for i, (s, of) in enumerate(zip(series, lags)):
        x, loc, scale = of(np.repeat(s.origins, p.horizon), np.tile(np.arange(p.horizon), p.windows))
        z = np.stack([model.predict(x, num_threads=threads) for model in models], axis=1)
        q = np.sort(z * scale[:, None] + loc[:, None], axis=1)
        out[i] = (np.maximum(q, 0.0) if p.bounds == "load" else q).reshape(out[i].shape)
    return out


def steps_of(series, p):
    """One row for each series, window and step: what a forecast file must hold."""
    issued = np.concatenate([np.repeat(s.start + (s.origins - 1) * p.step, p.horizon) for s in series])
    ahead = p.step * np.tile(np.arange(1, p.horizon + 1), len(series) * p.windows)
    each = p.horizon * p.windows
    return pd.DataFrame({"shard_id": np.repeat([s.shard for s in series], each), "issued_at": issued, "target_ts": issued + ahead})


def write_forecasts(path, series, p, q):
    table = steps_of(series, p)
    for column in ("issued_at", "target_ts"):
        table[column] = pd.to_datetime(table[column], unit="ms", utc=True).astype("datetime64[ms, UTC]")
    table.insert(1, "metric", np.repeat([s.metric for s in series], p.horizon * p.windows))
    table[COLUMNS] = q.reshape(-1, len(LEVELS))
    parquet.write_table(pyarrow.Table.from_pandas(table, preserve_index=False), path, compression="zstd")


def read_forecasts(path, series, p):
    key = ["shard_id", "issued_at", "target_ts"]
    given = read_table(path, key + COLUMNS, [], "forecasts")
    if given.duplicated(key).any():
        fail(f"forecasts {path} hold {given.duplicated(key).sum()} steps more than once")
    found = steps_of(series, p).merge(given, on=key, how="left")
    bad = found[~np.isfinite(found[COLUMNS]).all(axis=1)]
    if len(bad):
        shard, issued, target = bad.iloc[0][key]
        of = f"{shard} issued at {pd.Timestamp(issued, unit='ms')} for {pd.Timestamp(target, unit='ms')}"
        fail(f"forecasts {path} lack {len(bad)} of {len(found)} steps of this history and protocol, such as that of {of}")
    return found[COLUMNS].to_numpy(np.float64).reshape(len(series), p.windows, p.horizon, len(LEVELS))


def our_forecasts(arguments, series, p):
    if arguments.ours:
        return read_forecasts(arguments.ours, series, p)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ours.parquet"
        command = [arguments.foreshard, "evaluate", "--history", arguments.history, "--protocol", p.name]
        try:
            subprocess.run([*command, "--seed", str(arguments.seed), "--forecasts", path], stdout=subprocess.DEVNULL, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            fail(f"no forecasts of ours: {error}")
        return read_forecasts(path, series, p)


class Scores:
    """Sums by series and window, from which all figures and their bootstrap come."""

    def __init__(self, series, p, q):
        y = np.stack([s.truth() for s in series])
        seen = np.isfinite(y)
        y, points = np.where(seen, y, 0.0), seen.sum(2)
        error = y[..., None] - q
        self.loss = (2 * np.maximum(LEVELS * error, (LEVELS - 1) * error).mean(3) * seen).sum(2)
        self.demand = np.abs(y).sum()
        inside = (y >= q[..., 0] - EQUAL) & (y <= q[..., -1] + EQUAL) & seen
        self.coverage = inside.sum() / seen.sum()
        # Series without a scale take no part in the scaled loss.
        scale = np.array([s.scale() for s in series])[:, None]
        self.points = np.where(np.isfinite(scale), points, 0)
        self.scaled = np.where(np.isfinite(scale), self.loss / scale, 0.0)

    def wql(self):
        return self.loss.sum() / self.demand if self.demand else np.nan

    def sql_geo(self, rows=1.0, columns=None):
        """Geometric mean over series of the scaled loss; `rows` and `columns` count how often each series and window was drawn."""
        columns = np.ones(self.loss.shape[1]) if columns is None else columns
        points = self.points @ columns
        rows = rows * (points > 0)
        scaled = (self.scaled @ columns) / np.maximum(points, 1)
        return np.exp((rows * np.log(np.maximum(scaled, LEAST_SCALED_LOSS))).sum() / rows.sum()) if rows.sum() else np.nan


def ratios(ours, rival, seed):
    """Ratio of WQL and of sql_geo, each with the bounds of its 95 % interval: series and windows drawn with replacement."""
    random, drawn = np.random.default_rng(seed), []
    n, windows = ours.loss.shape
    for _ in range(DRAWS):
        rows = np.bincount(random.integers(0, n, n), minlength=n).astype(float)
        columns = np.bincount(random.integers(0, windows, windows), minlength=windows).astype(float)
        below = rows @ rival.loss @ columns
        wql = rows @ ours.loss @ columns / below if below > 0 else np.nan
        drawn.append((wql, ours.sql_geo(rows, columns) / rival.sql_geo(rows, columns)))
    whole = ours.wql() / rival.wql(), ours.sql_geo() / rival.sql_geo()
    return [(ratio, *np.nanquantile(of, [0.025, 0.975])) for ratio, of in zip(whole, np.transpose(drawn))]


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench-peers forecast", allow_abbrev=False, description="foreshard's forecasts against LightGBM's on lag features.")
    parser.add_argument("--history", type=Path, required=True, help="Parquet file in the long layout: shard_id, ts, metrics")
    parser.add_argument("--protocol", default="5T", help="5T, 15T or a protocol file (TOML)")
    parser.add_argument("--forecasts", type=Path, help="where LightGBM's forecasts are written (Parquet)")
    ours = parser.add_mutually_exclusive_group(required=True)
    ours.add_argument("--ours", type=Path, help="our forecasts, written by `foreshard evaluate --forecasts` before")
    ours.add_argument("--foreshard", help="program that makes our forecasts (without any of the three: built from this checkout)")
    ours.add_argument("--rival-only", action="store_true", help="LightGBM alone")
    parser.add_argument("--seed", type=int, default=1, help="seed of both forecasters and of the intervals")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of LightGBM")
    arguments = parser.parse_args()
    p = read_protocol(arguments.protocol)
    series, left = read_series(arguments.history, p)
    q = forecast(series, p, arguments.seed, arguments.threads)
    if arguments.forecasts:
        write_forecasts(arguments.forecasts, series, p, q)
    rows = [("LightGBM", Scores(series, p, q))]
    if not arguments.rival_only:
        rows.insert(0, ("ours", Scores(series, p, our_forecasts(arguments, series, p))))
    print(f"{arguments.history.name}, protocol {p.name}: {len(series)} series, {p.windows} windows of {p.horizon} steps, {len(left)} left out")
    print(f"{'':<10}{'WQL':>24}{'sql_geo':>24}{'coverage 80 %':>16}")
    for name, scores in rows:
        print(f"{name:<10}{scores.wql():>24.4f}{scores.sql_geo():>24.4f}{scores.coverage:>16.3f}")
    if not arguments.rival_only:
        cells = [f"{ratio:.3f} [{low:.3f}, {high:.3f}]" for ratio, low, high in ratios(rows[0][1], rows[1][1], arguments.seed)]
        print(f"{'ratio':<10}{cells[0]:>24}{cells[1]:>24}    (95 % interval over series and windows; below 1 ours is better)")


if __name__ == "__main__":
    main()
