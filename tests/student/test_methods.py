"""What other methods learn, or make of what was learnt: each by plain torch, on a model of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from tiny import saved
from torch import Tensor
from trainings import recipe, weights

from orchestrator import pipeline
from orchestrator.carry.excess import read_excess
from orchestrator.carry.semantics import meanings, read_aligned
from orchestrator.errors import UserError
from orchestrator.models import adapters
from orchestrator.models.loading import load
from orchestrator.prepare.ready import check, prepare
from orchestrator.step import Step, materialise
from orchestrator.store import Store
from orchestrator.student import training
from orchestrator.student.editing import edit
from orchestrator.student.finetune import adapted
from orchestrator.tasks.template import Encoded, collate
from orchestrator.teacher.by_example import file_of
from orchestrator.teacher.labels import read_labels
from orchestrator.transfer.arms import Arm
from orchestrator.transfer.distillation import divergence, likeliest

RANK = 4
SHORT: dict[str, Any] = {"finetune": {"examples": 32, "epochs": 1, "batch_size": 16, "dropout": 0.0}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def arm(kind: str, **fields: Any) -> Any:
    return TypeAdapter(Arm).validate_python({"kind": kind, **fields})


def rows(*widths: int) -> list[Encoded]:
    draw = torch.Generator().manual_seed(3)
    each = ((str(width), torch.randint(5, 90, (width,), generator=draw).tolist()) for width in widths)
    return [Encoded(name, ids, [-100] * 4 + ids[4:]) for name, ids in each]


def encoded(step: Step, store: Store) -> list[Encoded]:
    from orchestrator.models.loading import load_tokenizer
    from orchestrator.tasks import rows as data
    from orchestrator.tasks.template import encode

    tokenizer = load_tokenizer(step.where["teacher"])
    return [encode(one, "plain", tokenizer, 2048) for one in data.read(materialise(step.inputs["rows"], store))]


def loss_of(one: Any, model: Any, some: list[Encoded], said: dict[str, Any], folder: Path, layer: Any = None) -> Tensor:
    how: dict[str, Any] = {"lr": 1e-3, "epochs": 1, "batch": 3, "micro": 3, "warmup": 0.0, "max_grad_norm": 1.0}
    args = training.arguments(folder, steps=1, **how, recompute=False, seed=0)
    trainer = training.Training(one.loss, said, 0, layer, model=model, args=args, train_dataset=some)
    count = sum(len(row.ids) - 4 for row in some)
    return trainer.compute_loss(model, trainer.data_collator(some), num_items_in_batch=count) * count


def test_tokens_in_which_the_update_shows_are_learnt_and_no_others() -> None:
    draw = torch.Generator().manual_seed(0)
    excess = {name: torch.randn(size, generator=draw) for name, size in (("a", 4), ("b", 7), ("c", 1), ("d", 6))}
    found = arm("titok", rows_kept=0.5, tokens_kept=0.5).masks(excess, 0)
    best = sorted(excess, key=lambda row: -float(excess[row].mean()))[:2]
    for row, values in excess.items():
        kept = [place for place, one in enumerate(found[row]) if one]
        count = round(len(values) / 2) if row in best else 0
        assert kept == sorted(
            sorted(range(len(values)), key=lambda place: -float(values[place]))[: max(count, row in best)]
        )
    whole = arm("titok", rows_kept=1, tokens_kept=1).masks(excess, 0)
    assert all(bool(mask.all()) for mask in whole.values())
    random = [arm("titok_random").masks(excess, seed) for seed in (0, 1)]
    assert all(sum(map(sum, one.values())) > 0 for one in random)
    assert any(not torch.equal(random[0][row], random[1][row]) for row in excess)


def test_losses_of_chosen_tokens(demo_models: dict[str, Path], tmp_path: Path) -> None:
    model, some = load(str(demo_models["demo-student"])), rows(9, 12, 7)
    draw = torch.Generator().manual_seed(1)
    masks = {row.id: torch.randint(2, (len(row.ids) - 4,), generator=draw).float() for row in some[:2]}
    kept = {row.id: likeliest(torch.randn(len(row.ids) - 4, 101, generator=draw), 1.0) for row in some[:2]}
    both = {name: ((one["tokens"], one["logs"]), masks[name]) for name, one in kept.items()}
    both["12"] = (None, masks["12"])  # of which the teacher was asked nothing
    wanted = {"titok": 0.0, "distil_titok": 0.0}
    for row in some:
        with torch.no_grad():
            logits = model(torch.tensor([row.ids])).logits[0, 3:-1]
        gold = torch.nn.functional.cross_entropy(logits, torch.tensor(row.ids[4:]), reduction="none")
        mask = masks.get(row.id, torch.ones(len(gold)))
        wanted["titok"] += float((gold * mask).sum())
        asked = both.get(row.id, (None, None))[0]
        mixed = 0.7 * gold + 0.3 * divergence(logits, *asked, 1.0) if asked else gold
        wanted["distil_titok"] += float((mixed * mask).sum())
    assert float(loss_of(arm("titok"), model, some, masks, tmp_path)) == pytest.approx(wanted["titok"], rel=1e-4)
    found = loss_of(arm("distil_titok", weight=0.3), model, some, both, tmp_path)
    assert float(found) == pytest.approx(wanted["distil_titok"], rel=1e-4)


def test_the_loss_of_places_and_its_gradient_are_plain_torchs(demo_models: dict[str, Path], tmp_path: Path) -> None:
    model, some, one = load(str(demo_models["demo-student"])), rows(9, 12, 7), arm("semalign", layer=1)
    draw = torch.Generator().manual_seed(1)
    width = model.config.hidden_size
    places = {row.id: torch.randn(len(row.ids) - 4, width, generator=draw) for row in some[:2]}
    weight = model.model.layers[0].mlp.down_proj.weight.requires_grad_(True)
    wanted = torch.tensor(0.0)
    for row in some:
        out = model(torch.tensor([row.ids]), output_hidden_states=True)
        logits, labels = out.logits[0, 3:-1], torch.tensor(row.ids[4:])
        if row.id not in places:
            wanted = wanted + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            continue
        hot = torch.nn.functional.one_hot(labels, logits.shape[1]).float()
        for state, place, scores, label in zip(out.hidden_states[2][0, 3:-1], places[row.id], logits, hot, strict=True):
            near, right = (torch.cosine_similarity(a, b, dim=0) for a, b in ((state, place), (scores, label)))
            wanted = wanted + (1 - near) + (1 - right)
    found = loss_of(one, model, some, places, tmp_path, model.model.layers[1])
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    right, own = (torch.autograd.grad(loss, weight)[0] for loss in (wanted, found))
    torch.testing.assert_close(own, right, rtol=1e-3, atol=1e-5)


def test_only_the_paired_layer_is_trained(demo_models: dict[str, Path]) -> None:
    one = arm("semalign")
    model = adapted(load(str(demo_models["demo-student"])), one, RANK, 4.0, 0.0, 0)
    layer = one.watched(model.config.num_hidden_layers)
    trained = {name.split("layers.")[1].split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {str(layer)}
    assert [one.source(12, 6), arm("semalign", layer=0).source(3, 6), arm("semalign", layer=5).source(12, 6)] == [
        7,
        0,
        11,
    ]


def test_meanings_are_made_of_unit_columns_of_the_heads_pseudo_inverses() -> None:
    draw = torch.Generator().manual_seed(0)
    theirs, own = torch.randn(50, 8, generator=draw), torch.randn(50, 6, generator=draw)
    bases = [torch.linalg.pinv(head) / torch.linalg.pinv(head).norm(dim=0) for head in (theirs, own)]
    torch.testing.assert_close(meanings(theirs, own), bases[1] @ bases[0].t(), rtol=1e-3, atol=1e-4)
    order = torch.randperm(50, generator=draw)
    torch.testing.assert_close(meanings(theirs, own, order), bases[1] @ bases[0][:, order].t(), rtol=1e-3, atol=1e-4)


def test_where_the_teacher_is_comes_from_its_own_states(store: Store, demo_models: dict[str, Path]) -> None:
    one = recipe("semalign", **SHORT)
    ready = prepare(one)
    step = pipeline.aligned_step(one, ready)
    found, teacher = read_aligned(materialise(step, store)), load(ready.teacher.folder)
    between = meanings(
        *(
            load(ready.checkpoint(who).folder).get_output_embeddings().weight.detach()[:101]
            for who in ("teacher", "student")
        )
    )
    for row in [row for row in encoded(step, store) if file_of(row.id) in found][:3]:
        with torch.no_grad():
            states = teacher(torch.tensor([row.ids]), output_hidden_states=True).hidden_states[step.config["layer"] + 1]
        own = [place for place, label in enumerate(row.labels[1:]) if label != -100]
        unit = torch.nn.functional.normalize(states[0, own], dim=1)
        torch.testing.assert_close(found[file_of(row.id)], unit @ between.t(), rtol=1e-3, atol=1e-4)


def test_excess_is_what_the_update_adds_to_each_tokens_log_probability(
    store: Store, demo_models: dict[str, Path]
) -> None:
    from peft import PeftModel

    one = recipe("titok", update={"rank": 4, "lr": 1e-2}, **SHORT)
    ready = prepare(one)
    step = pipeline.GIVEN["excess"](one, ready)
    found, update = read_excess(materialise(step, store)), materialise(step.inputs["update"], store)
    teacher = load(ready.teacher.folder)
    for row in encoded(step, store)[:4]:
        logs = []
        for adapter in (str(update), None):
            model = PeftModel.from_pretrained(load(ready.teacher.folder), adapter) if adapter else teacher
            with torch.no_grad():
                each = model.eval()(torch.tensor([row.ids])).logits[0, :-1].log_softmax(-1)
            own = [place for place, label in enumerate(row.labels[1:]) if label != -100]
            logs.append(each[own, torch.tensor(row.ids)[1:][own]])
        torch.testing.assert_close(found[file_of(row.id)], logs[0] - logs[1], rtol=1e-3, atol=1e-3)
    assert any(value.abs().max() > 0.1 for value in found.values())


@pytest.mark.parametrize("kind", ["distil_tuned", "distil_titok"])
def test_who_distils_beside_an_update_asks_the_teacher_with_it(
    kind: str, store: Store, demo_models: dict[str, Path]
) -> None:
    """By plain PEFT on the stock teacher; `distil` asks the teacher as it is."""
    from peft import PeftModel

    one = recipe(kind, update={"rank": 4, "lr": 1e-2}, **SHORT)
    ready = prepare(one)
    step = pipeline.finetune_step(one, ready).inputs["labels"]
    found, update = read_labels(materialise(step, store)), materialise(step.inputs["update"], store)
    assert "update" not in pipeline.finetune_step(recipe("distil", **SHORT), ready).inputs["labels"].inputs
    stock = load(ready.teacher.folder)
    model = PeftModel.from_pretrained(load(ready.teacher.folder), str(update)).eval()
    for row in [row for row in encoded(step, store) if file_of(row.id) in found][:3]:
        with torch.no_grad():
            each, plain = (net(torch.tensor([row.ids])).logits[0, :-1, :101] for net in (model, stock))
        own = [place for place, label in enumerate(row.labels[1:]) if label != -100]
        tokens, logs = found[file_of(row.id)]
        wanted = (each[own] / step.config["temperature"]).log_softmax(-1).gather(1, tokens.long())
        torch.testing.assert_close(logs[:, :-1], wanted, rtol=1e-3, atol=1e-3)
        other = (plain[own] / step.config["temperature"]).log_softmax(-1).gather(1, tokens.long())
        assert not torch.allclose(other, wanted, rtol=0.1, atol=0.1)


def worn(tmp_path: Path, family: str = "llama") -> tuple[Any, dict[str, Tensor]]:
    """A model with an adapter that does something, and each module's product."""
    saved(tmp_path / "model", family, vocab_size=104)
    model = adapted(load(str(tmp_path / "model")), arm("lora"), RANK, 8.0, 0.0, 0)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in adapters.lora_layers(model).values():
            up, _ = adapters.factors_of(layer)
            up.copy_(0.1 * torch.randn(up.shape, generator=draw))
    return model, products(model)


def products(model: Any) -> dict[str, Tensor]:
    found = {}
    for name, layer in adapters.lora_layers(model).items():
        up, down = adapters.factors_of(layer)
        found[name] = layer.scaling["default"] * (up @ down).detach()
    return found


def batches() -> list[dict[str, Tensor]]:
    return [collate(rows(9, 12), 0), collate(rows(7), 0)]


@pytest.mark.parametrize(("family", "recompute"), [("llama", False), ("llama-tied", True)])
def test_singular_values_follow_what_the_loss_asks_of_each(family: str, recompute: bool, tmp_path: Path) -> None:
    """∂L/∂σ by a plain model into whose weights each σ is put; sums and directions stay."""
    model, before = worn(tmp_path, family)
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    modes = [module.training for module in model.modules()]
    edit(model, arm("spectral"), batches(), 0, recompute)
    after = products(model)
    name = "model.layers.1.self_attn.v_proj"
    plain = load(str(tmp_path / "model"))
    with torch.no_grad():  # the merged one, an embedding and a head apart even where they were one
        plain.lm_head.weight = torch.nn.Parameter(plain.lm_head.weight.detach().clone())
        for module, product in before.items():
            plain.get_submodule(module).weight += product
    weight = plain.get_submodule(name).weight.requires_grad_(True)
    loss = torch.tensor(0.0)
    for row in [*rows(9, 12), *rows(7)]:
        logits = plain(torch.tensor([row.ids])).logits[0, 3:-1]
        loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(row.ids[4:]), reduction="none").mean()
    (gradient,) = torch.autograd.grad(loss, weight)
    u, s, vh = (part[..., :RANK] if at < 2 else part[:RANK] for at, part in enumerate(torch.linalg.svd(before[name])))
    asked = s * torch.diagonal(u.t() @ gradient @ vh.t())
    wanted = s * (1 - 0.5 * torch.tanh(asked / asked.abs().mean()))
    wanted = wanted * s.sum() / wanted.sum()
    torch.testing.assert_close(after[name], (u * wanted) @ vh, rtol=1e-2, atol=1e-4)
    for module, product in before.items():
        assert torch.linalg.matrix_norm(after[module], "nuc") == pytest.approx(
            float(torch.linalg.matrix_norm(product, "nuc")), rel=1e-3
        )
    assert all(parameter.requires_grad == ("lora_" in key) for key, parameter in model.named_parameters())
    assert [module.training for module in model.modules()] == modes
    stock = load(str(tmp_path / "model")).state_dict()
    adapters.take_off(model)
    assert all(torch.equal(value, stock[key]) for key, value in model.base_model.model.state_dict().items())


def test_with_every_entry_kept_the_mask_changes_nothing(tmp_path: Path) -> None:
    model, before = worn(tmp_path)
    edit(model, arm("sta", kept=1.0), batches(), 0, False)
    for name, product in products(model).items():
        torch.testing.assert_close(product, before[name], rtol=1e-3, atol=1e-5)


def test_the_mask_keeps_what_the_loss_depends_on() -> None:
    draw = torch.Generator().manual_seed(0)
    b, a, gradient = (torch.randn(*shape, generator=draw) for shape in ((6, 2), (2, 5), (6, 5)))
    up, down = arm("sta", kept=0.3).edit((b, a), gradient, 5, draw)
    whole = b @ a
    least = (whole * gradient).abs().flatten().sort(descending=True).values[8]
    torch.testing.assert_close(up @ down, whole * ((whole * gradient).abs() >= least), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["spectral", "sta", "titok", "semalign"])
def test_what_leaves_is_a_lora_of_the_trials_rank(kind: str, store: Store, demo_models: dict[str, Path]) -> None:
    one = recipe(kind, update={"rank": 4, "lr": 1e-2}, **SHORT)
    folder = materialise(pipeline.finetune_step(one, prepare(one)), store)
    assert {value.shape[0] for name, value in weights(folder).items() if "lora_A" in name} == {RANK}


def test_equal_compute_is_so_many_more_steps(demo_models: dict[str, Path]) -> None:
    """Weights that a token is multiplied with, counted on the models themselves."""
    one = recipe("lora_equal", **SHORT)
    ready = prepare(one)
    sizes = []
    for who in ("teacher", "student"):
        model = load(ready.checkpoint(who).folder)
        table = model.get_input_embeddings().weight
        sizes.append(sum(p.numel() for p in model.parameters() if p.dim() == 2 and p is not table))
    epochs = pipeline.finetune_step(one, ready).config["epochs"]
    assert epochs == pytest.approx(SHORT["finetune"]["epochs"] * (1 + sizes[0] / sizes[1]))
    assert pipeline.finetune_step(recipe("lora", **SHORT), ready).config["epochs"] == 1


def test_a_teacher_may_train_for_longer_and_equal_compute_grows_with_it(demo_models: dict[str, Path]) -> None:
    def epochs(arm: str, **update: float) -> tuple[float, float]:
        one = recipe(arm, update=update, **SHORT).settled()
        ready = prepare(one)
        steps = (pipeline.update_step(one, ready), pipeline.finetune_step(one, ready))
        return steps[0].config["epochs"], steps[1].config["epochs"]

    (usual, once), (longer, more) = epochs("lora_equal"), epochs("lora_equal", epochs=3)
    assert (usual, longer) == (1, 3)
    assert more - 1 == pytest.approx(3 * (once - 1))
    assert epochs("lora", epochs=3)[1] == epochs("theseus", epochs=3)[1] == 1
    assert epochs("theseus", epochs=3)[0] == 3


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"kind": "semalign", "layer": 4}, "arm.layer: 4 of semalign, and the student's are 0 to 3"),
        ({"kind": "semalign"}, "semalign needs one vocabulary and template"),
        ({"kind": "titok"}, "titok needs one vocabulary and template"),
        ({"kind": "laten"}, "laten can't tell what neurons of gemma2 write, which is normed"),
    ],
)
def test_an_arm_whose_needs_are_not_met_is_refused(
    asked: dict[str, Any], message: str, demo_models: dict[str, Path], tmp_path: Path
) -> None:
    teacher, models = "demo-teacher", {"gemma2": "gemma2", "one vocabulary": "llama"}
    for word, family in models.items():
        if word in message:
            saved(tmp_path / "teacher", family, vocab_size=104, num_hidden_layers=6)
            teacher = str(tmp_path / "teacher")
    if "one vocabulary" in message:
        tokenizer = (tmp_path / "teacher/tokenizer.json").read_text()
        (tmp_path / "teacher/tokenizer.json").write_text(tokenizer.replace('"Z"', '"ZZ"'))
    one = recipe(asked, teacher=teacher, student="demo-student", task={"name": "demo"}, **SHORT)
    with pytest.raises(UserError, match=re.escape(message)):
        check(one, prepare(one))
