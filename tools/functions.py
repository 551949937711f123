"""The commands as functions of Python: the same options, the same facts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ._evaluate import evaluated
from .console import markup_safe
from .facts import Facts, FactsList
from .model_forms import as_file, as_model
from .result import Result

if TYPE_CHECKING:
    from ._package.request import OrtFormat
    from ._run.settings import Verify

__all__ = [
    "batch",
    "bench",
    "diff",
    "distill",
    "evaluate",
    "explain",
    "export",
    "inspect",
    "list_passes",
    "package",
    "report",
    "selftest",
    "verify",
]


def verify(
    a: Any,
    b: Any,
    data: Any = None,
    *,
    min_sqnr: float | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    metric: str | Callable[..., Any] | None = None,
    threads: int = 0,
    seed: int = 0,
) -> Facts:
    """Compare the outputs of model `b` with those of model `a`, per output.

    `data`: as of `optimize`; None: made up. `metric`: both are scored by it, as of `evaluate`, or
    by `generation`: tokens that `b` generates as `a` does. `min_sqnr` (dB), `atol`, `rtol`:
    limits; `within` and `problem` say if they are met. Errors: RefusedError for a model or data,
    and for models with other inputs or outputs.
    """
    from .commands.verify import as_dict, compare, comparison_parts

    with as_file(a) as first, as_file(b) as second:
        comparison = compare(
            first,
            second,
            data,
            atol,
            rtol,
            threads,
            seed,
            metric,
        )
        problem = comparison.closeness.problem(min_sqnr)
        facts = as_dict(comparison, first, second, problem)

    def parts() -> list[Any]:
        found = comparison_parts(comparison, first, second)
        for text in comparison.warnings:
            safe = markup_safe(text)
            found.append(f"warning: {safe}")
        return found

    return Facts(facts, parts)


def bench(
    *models: Any,
    data: Any = None,
    provider: str = "cpu",
    threads: int = 0,
    seconds: float = 5.0,
    seed: int = 0,
    report: str | Path | None = None,
) -> Facts:
    """Time models in turns in one process: latency in ms, ratio to the first, peak memory.

    `provider`: cpu, cuda or tensorrt. `report`: a page (.html) of it. Errors: UsageError,
    RefusedError (model, data, provider).
    """
    from ._report.write import check_page, write_page
    from .commands.bench import bench_facts, latency_parts

    page = None if report is None else Path(report)
    if page is not None:
        check_page(page, "report")

    with contextlib.ExitStack() as stack:
        paths = tuple(stack.enter_context(as_file(model)) for model in models)
        facts = bench_facts(
            paths,
            provider=provider,
            threads=threads,
            data=data,
            seconds=seconds,
            seed=seed,
        )
    if page is not None:
        write_page(page, facts, "bench")
    return Facts(facts, lambda: latency_parts(facts))


def diff(a: Any, b: Any, *, html: str | Path | None = None) -> Facts:
    """Differences of model `b` from model `a`: interface, operators, nodes, weights.

    Nothing is run. `html`: a page of it, with the graph. Errors: UsageError for the page's path,
    RefusedError for a model.
    """
    from ._report.write import check_page
    from .commands.diff import compared, diff_parts

    page = None if html is None else Path(html)
    if page is not None:
        check_page(page, "html")
    with as_file(a) as first, as_file(b) as second:
        facts = compared(first, second, page)
    return Facts(facts, lambda: diff_parts(facts, 0))


def explain(
    a: Any,
    b: Any,
    data: Any,
    *,
    report: str | Path | None = None,
    **options: Any,
) -> Facts:
    """Compare what models `a` and `b` look at, on samples of the data.

    `options`: `method`, `engine`, `samples`, `runs`, `input`, `output`, `form`, `min_agreement`
    (`within` and `problem` say if it is met), `threads`, `seed`, as of `onnx-opt explain`.
    `report`: a page (.html) of it. Errors: UsageError, RefusedError (models, data).
    """
    from ._explain.request import ExplainRequest
    from ._report.write import check_page
    from .commands.explain import explain_facts, explain_parts

    page = None if report is None else Path(report)
    if page is not None:
        check_page(page, "report")
    with as_file(a) as first, as_file(b) as second:
        request = ExplainRequest(first, second, data, **options)
        facts, _ = explain_facts(request, page)
    return Facts(facts, lambda: explain_parts(facts, 0))


def report(account: Any, out: str | Path | None = None) -> Path:
    """Write the page of an account: one HTML file that needs no network; returns its path.

    `account`: a Result or Facts, the dict or the JSON file of one. `out`: where to write; None:
    beside the file, or report.html. Errors: UsageError for the path, RefusedError for the account.
    """
    from ._report.stored import page_from_account, page_from_file

    page = None if out is None else Path(out)
    if isinstance(account, (str, Path)):
        return page_from_file(Path(account), page)[0]
    as_dict = getattr(account, "to_dict", None)
    found = account if as_dict is None else as_dict()
    return page_from_account(found, page or Path("report.html"), "account")[0]


def evaluate(
    model: Any,
    data: Any,
    metric: str | Callable[..., Any],
    *,
    metric_output: str | None = None,
    provider: str = "cpu",
    threads: int = 0,
    cache: bool = True,
) -> float:
    """Metric of a model on labelled data.

    `metric`: top1, top5, spearman, perplexity, `module:callable`, or a function of the outputs (a
    list of arrays a batch) and the labels of all batches. `cache`: as of `optimize`. Errors:
    UsageError, RefusedError (model, data).
    """
    with as_file(model) as path:
        return evaluated(
            path,
            data,
            metric,
            output=metric_output,
            provider=provider,
            threads=threads,
            use_cache=cache,
        ).score.value


def inspect(
    model: Any, *, groups: bool = False, html: str | Path | None = None
) -> Facts:
    """Parts of a model, and what each lossy pass could touch in it; nothing is changed.

    `groups`: instead, the channels that go together and the weights that stay. `html`: a page of
    the parts, with the graph. Errors: UsageError for the page's path, RefusedError for the model.
    """
    from ._groups import groups_of
    from ._inspect import inspection
    from ._report.write import check_page
    from .commands.inspect import group_parts, report, write_inspection

    page = None if html is None else Path(html)
    if page is not None:
        check_page(page, "html")

    with as_file(model) as path:
        if groups:
            found = groups_of(path)
            return Facts(found, lambda: group_parts(found, 0))
        facts = inspection(path)
        if page is not None:
            write_inspection(page, path, facts)
    return Facts(facts, lambda: report(facts, 10, 0))


@overload
def list_passes(name: None = None) -> FactsList: ...


@overload
def list_passes(name: str) -> Facts: ...


def list_passes(name: str | None = None) -> Facts | FactsList:
    """All passes with their options, as a list, or the one of a name. Errors: UsageError."""
    from ..passes._core.registry import pass_class, pass_names
    from .commands.passes import describe
    from .tables import pass_list

    names = pass_names() if name is None else [name]
    described = [describe(pass_class(each)) for each in names]
    found = [_facts_of_pass(each) for each in described]
    if name is not None:
        return found[0]
    return FactsList("passes", found, lambda: [pass_list(described)])


def _facts_of_pass(described: dict[str, Any]) -> Facts:
    from .tables import pass_detail

    return Facts(described, lambda: pass_detail(described))


def export(
    source: str,
    out: str | Path,
    *,
    opset: int | None = None,
    dynamic: Sequence[str] = (),
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    state_dict: str | Path | None = None,
    partial: bool = False,
    verify: bool = True,
    atol: float | None = None,
    rtol: float | None = None,
) -> Facts:
    """Export a torch model to ONNX, checked against torch on its example inputs.

    `source`: `module:callable` or `file.py:callable`, a .pt2 file, or a Hugging Face folder; the
    other options as of `onnx-opt export`. Errors: UsageError, RefusedError, CheckError where the
    file differs from torch.
    """
    from ._export import ExportRequest
    from ._export import export as export_source
    from .commands.export import account_parts, export_facts

    request = ExportRequest(
        source=source,
        out=Path(out),
        opset=opset,
        dynamic=dynamic,
        input_names=input_names,
        output_names=output_names,
        state_dict=None if state_dict is None else Path(state_dict),
        partial=partial,
        verify=verify,
        atol=atol,
        rtol=rtol,
    )
    exported, files, warnings = export_source(request)
    facts = export_facts(exported, request.out, files)
    facts["warnings"] = [*warnings, *exported.warnings]
    return Facts(facts, lambda: account_parts(facts))


def distill(
    teacher: Any,
    student: Any,
    data: Any,
    *,
    recipe: str = "",
    init: bool = False,
    **options: Any,
) -> Result:
    """Train `student` to say what `teacher` says, on data with or without labels.

    `recipe`: options of the pass `finetune`, such as `steps=500`. `init`: begin with random
    weights. `options`: those of `optimize`. Errors: as of `optimize`.
    """
    from .commands.distill import as_pass, initialized
    from .optimize import optimize

    found: Any = as_model(student)
    if init:
        with as_file(student) as path:
            found = initialized(path, int(options.get("seed", 0)))
    return optimize(
        found,
        as_pass(recipe),
        data=data,
        teacher=as_model(teacher),
        bench=False,
        **options,
    )


def package(
    model: Any,
    out: str | Path,
    *,
    target: str = "cpu",
    shapes: Mapping[str, Sequence[int | None]] | Sequence[str] | None = None,
    data: Any = None,
    preprocess: str | Path | None = None,
    labels: str | Path | None = None,
    tokenizer: str | Path | None = None,
    licence: str | Path | None = None,
    node_modules: str | Path | None = None,
    ort: OrtFormat = "auto",
    bench: bool = True,
    cache: bool = True,
    seed: int = 0,
    force: bool = False,
) -> Facts:
    """Write a bundle: the model with all that it needs to run, and to prove that it does.

    `out`: a folder to make, or an archive (.zip, .tar.gz). `data`: real inputs for the samples;
    `shapes`: dims to fix; both as of `optimize`. The other options as of `onnx-opt package`.
    Errors: UsageError (options, an output that is there), RefusedError (model, data, no sample that
    it runs on).
    """
    from ..passes._core.input_shapes import as_shape_texts
    from ._package.package import package as make
    from ._package.request import PackageRequest
    from .commands.package import as_facts, bundle_parts

    files = {
        "preprocess": preprocess,
        "labels": labels,
        "tokenizer": tokenizer,
        "licence": licence,
        "node_modules": node_modules,
    }
    given = {name: None if each is None else Path(each) for name, each in files.items()}
    with as_file(model) as path:
        request = PackageRequest(
            model=path,
            out=Path(out),
            target=target,
            shapes=as_shape_texts(shapes),
            data=data,
            ort=ort,
            bench=bench,
            cache=cache,
            seed=seed,
            force=force,
            **given,
        )
        facts = as_facts(make(request))
    return Facts(facts, lambda: bundle_parts(facts))


def selftest(
    bundle: str | Path,
    *,
    provider: str = "auto",
    threads: int = 0,
    seconds: float = 1.0,
) -> Facts:
    """Check a bundle, a folder or an archive: digests, runtime, provider, samples; and measure.

    `provider`: `auto`, or cpu, cuda, tensorrt, openvino, …. `seconds`: to time runs for. Errors:
    CheckError where a check fails, RefusedError for what is no sound bundle, UsageError.
    """
    from .commands.selftest import selftest_facts, selftest_parts

    facts = selftest_facts(Path(bundle), provider, threads, seconds)
    return Facts(facts, lambda: selftest_parts(facts))


def batch(
    folder: str | Path,
    passes: str | Sequence[str] = (),
    *,
    out: str | Path | None = None,
    jobs: int = 1,
    ray: str | None = None,
    target: str = "cpu",
    shapes: Mapping[str, Sequence[int | None]] | Sequence[str] | None = None,
    data: str | Path | Sequence[str | Path] | None = None,
    eval_data: str | Path | Sequence[str | Path] | None = None,
    metric: str | None = None,
    metric_output: str | None = None,
    max_drop: float | None = None,
    min_sqnr: float | None = None,
    floor: str | float | None = None,
    verify: Verify = "auto",
    strict: bool = False,
    bench: bool = True,
    pack: bool = True,
    timeout: float | None = None,
    cache: bool = True,
    cache_in: str | Path | None = None,
    cache_mb: int = 2048,
    force: bool = False,
    seed: int = 0,
    threads: int = 0,
) -> Facts:
    """Optimize all models below a folder, `jobs` at a time, each in a process of its own.

    `passes`: pipeline text; `data`, `eval_data`: a place, or several; `cache_in`: folder of the
    results that are kept; the other options as of `onnx-opt batch`.
    `failed` names the models that failed, whose `error` says why; the others are done. Errors:
    RefusedError for a folder without models, UsageError.
    """
    from ..passes._core.input_shapes import as_shape_texts
    from .commands.batch import batch_facts, batch_parts

    texts = (passes,) if isinstance(passes, str) else tuple(passes)
    facts = batch_facts(
        Path(folder),
        out=None if out is None else Path(out),
        jobs=jobs,
        ray=ray,
        timeout=timeout,
        cache_in=None if cache_in is None else Path(cache_in),
        cache_mb=cache_mb if cache else 0,
        progress=None,
        no_bench=not bench,
        no_pack=not pack,
        passes=texts,
        target=target,
        shapes=as_shape_texts(shapes),
        data=data,
        eval_data=eval_data,
        metric=metric,
        metric_output=metric_output,
        max_drop=max_drop,
        min_sqnr=min_sqnr,
        floor=None if floor is None else str(floor),
        verify=verify,
        seed=seed,
        threads=threads,
        strict=strict,
        force=force,
    )
    return Facts(facts, lambda: batch_parts(facts))
