from __future__ import annotations

from hardneg.cli import main


def test_a_dry_run_lists_cells_and_runs_none(suite_file, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["benchmark", "run", str(suite_file(expect_seconds=60)), "--folder", str(folder), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("tiny: 5 cells, 0 finished\n  to run ")
    assert "zoo / words / ngame / seed 1" in printed
    assert "about 5 min with 1 at a time" in printed
    assert not folder.exists()


def test_run_then_report(suite_file, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["benchmark", "run", str(suite_file(seeds=1, budget={"steps": 1})), "--folder", str(folder)]) == 0
    assert "| ngame | 1 |" in (folder / "report.md").read_text()
    (folder / "report.html").unlink()
    assert main(["benchmark", "report", str(folder)]) == 0
    assert str(folder / "report.html") in capsys.readouterr().out
    assert (folder / "report.html").exists()
    assert (
        main(["benchmark", "run", str(suite_file(seeds=1, budget={"steps": 1})), "--folder", str(folder), "--dry-run"])
        == 0
    )
    assert "3 cells, 3 finished" in capsys.readouterr().out


def test_mistakes_end_in_one_sentence(suite_file, tmp_path, capsys):
    assert main(["benchmark", "run", str(suite_file(chian={}))]) == 1
    assert "suite has no key 'chian'" in capsys.readouterr().err
    assert main(["benchmark", "run", str(suite_file()), "--processes", "0"]) == 1
    assert "--processes 0" in capsys.readouterr().err
    assert main(["benchmark", "run", "suites/smok.yaml"]) == 1
    assert "config 'suites/smok.yaml': no such file here, and none ships" in capsys.readouterr().err
    assert main(["benchmark", "report", str(tmp_path)]) == 1
    assert "runs.parquet does not exist" in capsys.readouterr().err


def test_a_suite_whose_cells_all_fail_says_why(suite_file, sample_folder, tmp_path, capsys):
    (sample_folder / "qrels" / "dev.tsv").unlink()
    assert main(["benchmark", "run", str(suite_file(seeds=1)), "--folder", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "3 cells failed" in error
    assert "no judgements for the split 'dev'" in error
