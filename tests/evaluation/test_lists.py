"""Labelled lists as their authors publish them; files found below a folder; a list in place of shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tgm_scale.evaluation.labelled import open_labelled
from tgm_scale.evaluation.lists import Entry, Folder, is_list, read_list

KINETICS = "label,youtube_id,time_start,time_end,split\nabseiling,0347ZoDXyP0,95,105,val\nplay piano,-x_y,3,13,val\n"
EPIC = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
    "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,42,['door'],[42]\n"
)
SSV2 = [
    {
        "id": "78687",
        "label": "holding potato next to vicks bottle",
        "template": "Holding [something] next to [something]",
    },
    {"id": "42326", "label": "spinning cube quickly", "template": "Spinning [something]"},
]
DIVING = [{"vid_name": "h4QBA3-TBB0_00001", "start_frame": 0, "label": 26, "end_frame": 149}]


@pytest.mark.parametrize(
    ("name", "text", "label", "wanted"),
    [
        (
            "val.csv",
            KINETICS,
            "label",
            [("0347ZoDXyP0_000095_000105", "abseiling"), ("-x_y_000003_000013", "play piano")],
        ),
        ("EPIC_100_train.csv", EPIC, "verb", [("P01_01_0", "3")]),
        ("EPIC_100_train.csv", EPIC, "noun", [("P01_01_0", "42")]),
        ("EPIC_100_train.csv", EPIC, "action", [("P01_01_0", "3,42")]),
        (
            "something-something-v2-train.json",
            json.dumps(SSV2),
            "label",
            [("78687", "Holding something next to something"), ("42326", "Spinning something")],
        ),
        ("Diving48_V2_train.json", json.dumps(DIVING), "label", [("h4QBA3-TBB0_00001", "26")]),
        (
            "trainlist01.txt",
            "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\n",
            "label",
            [("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "ApplyEyeMakeup")],
        ),
        ("testlist01.txt", "Archery/v_Archery_g01_c01.avi\n", "label", [("Archery/v_Archery_g01_c01.avi", "Archery")]),
        ("list.txt", "a b/c.mp4 7\n\nd.mp4 8\n", "label", [("a b/c.mp4", "7"), ("d.mp4", "8")]),
        ("train.csv", "videos/a.mp4 3\nvideos/b.mp4 4\n", "label", [("videos/a.mp4", "3"), ("videos/b.mp4", "4")]),
        ("labels.csv", "file,label,performer\nx.mp4,bend,0\n", "label", [("x.mp4", "bend")]),
    ],
)  # fmt: skip
def test_each_published_format(tmp_path: Path, name: str, text: str, label: str, wanted: list) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert is_list(str(file))
    assert read_list(file, label=label) == [Entry(*pair) for pair in wanted]


def test_hmdb51_splits_by_role_and_number(tmp_path: Path) -> None:
    (tmp_path / "cartwheel_test_split1.txt").write_text("a_1.avi 1 \nb_2.avi 2 \nc_3.avi 0 \n")
    (tmp_path / "cartwheel_test_split2.txt").write_text("a_1.avi 2 \n")
    (tmp_path / "ride_bike_test_split1.txt").write_text("d_4.avi 2 \n")
    assert is_list(str(tmp_path))
    assert read_list(tmp_path, "train") == [("a_1.avi", "cartwheel")]
    assert read_list(tmp_path, "test") == [("b_2.avi", "cartwheel"), ("d_4.avi", "ride_bike")]
    assert read_list(tmp_path, "test", split=2) == [("a_1.avi", "cartwheel")]
    with pytest.raises(ValueError, match=r"no .*_test_split3.txt"):
        read_list(tmp_path, "test", split=3)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "a,b\n1,2\n", "columns a, b; wanted Kinetics"),
        ("x.json", '{"a": 1}', "wanted a list of objects"),
        ("x.json", '[{"id": "4"}]', "the test list has no labels"),
        ("x.json", "[", "not valid JSON"),
        ("x.txt", "lonely\n", r"x.txt:1: wanted 'path label', found 'lonely'"),
        ("x.txt", "\n", "lists no video"),
    ],
)
def test_other_contents_are_refused_with_what_was_found(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_list(tmp_path / name)


def test_a_label_that_epic_has_not(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text(EPIC)
    with pytest.raises(ValueError, match=r"data.label=label: for EPIC-Kitchens wanted one of verb, noun, action"):
        read_list(tmp_path / "e.csv")


def test_files_are_found_by_path_by_stem_and_in_folders(tmp_path: Path) -> None:
    for name in ("a.mp4", "deep/er/78687.webm", "deep/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    folder = Folder(tmp_path, ("mp4", "webm"))
    assert folder.find("a.mp4") == tmp_path / "a.mp4"
    assert folder.find("78687") == tmp_path / "deep/er/78687.webm"
    assert folder.find("elsewhere/a.avi") == tmp_path / "a.mp4"
    assert folder.find("notes") is None and folder.find("b") is None


def test_a_list_of_real_videos_stands_for_shards(real: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("bend_00000006.mp4 bend\ngone.mp4 bend\none_hand_wave_00000002.mp4 wave\n")
    found = open_labelled(str(tmp_path / "list.txt"), root=str(real / "weizmann"))
    refs = found.refs
    assert [(ref.name, found.labels[ref.name]) for ref in refs] == [
        ("bend_00000006.mp4", "bend"),
        ("one_hand_wave_00000002.mp4", "wave"),
    ]
    assert [(problem.key, problem.reason) for problem in found.problems] == [("gone.mp4", "no_file")]
    assert found.corpus.read(refs[0], ["mp4"])["mp4"] == (real / "weizmann/bend_00000006.mp4").read_bytes()
    with pytest.raises(ValueError, match=r"set data.root to the folder of the videos"):
        open_labelled(str(tmp_path / "list.txt"), root=str(tmp_path))
