from transformers import TrainerState

from lacos_st.training.progress import Progress


def test_speed_is_of_the_rows_that_were_seen_since_resuming(monkeypatch, capsys):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr("lacos_st.training.progress.time.time", lambda: next(clock))
    progress = Progress(rows=500)
    progress.on_train_begin(None, TrainerState(epoch=0.4, global_step=4, max_steps=10), None)
    logs = {"loss": 1.0}
    progress.on_log(None, TrainerState(epoch=0.6, global_step=6, max_steps=10), None, logs)
    progress.on_train_end(None, None, None)
    assert logs["pairs_per_second"] == 10.0
    assert capsys.readouterr().out.splitlines() == [  # no terminal: lines
        "going on from step 4 of 10",
        "step 6 of 10: loss 1.000, 10.0 pairs/s",
    ]
