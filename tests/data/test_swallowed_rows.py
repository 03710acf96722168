"""A quotation mark that is not closed takes other rows into a field: told, and texts of several lines are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgm_scale.data.lists.reading import Listing, Selection, read_list


def listed(tmp_path: Path, text: str, label: str = "label") -> Listing:
    (tmp_path / "x.csv").write_text(text)
    return read_list(tmp_path / "x.csv", Selection(role="all", wanted="caption", label=label))


@pytest.mark.parametrize(
    "text",
    [
        'file,caption\na.mp4,"one\nmy dog.mp4,two"\n',
        'id,file,caption\n1,a.mp4,"a man\n2,b.mp4,a dog, running"\n3,c.mp4,x\n',  # the column that is read
        'id,file,caption\n3,"man\n\n2,b.mp4"\n4,c.mp4,x\n',
        'caption,file,label\n"man,a.mp4,1\ndog",b.mp4,2\nx,c.mp4,2\n',  # the row's own file is in the field
    ],
)
def test_rows_of_other_videos_in_a_field_are_refused_by_the_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        ValueError, match=r"x.csv line 2: a field of \d lines, with other rows in it: close its .* line$"
    ):
        listed(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        'file,caption\na,"one\nb,two\nc,three"\n',
        'file,label,split,note\na,x,train,"good\nb,y,train,fine\nc,x,test,ok"\n',  # a column not read
        'file,caption,split\na,"one,train\nb,two",test\n',  # of the last row what is before the mark
        'file,caption\nA dog,"one\na cat,two"\n',  # names with blanks, as the row's own
        'file,caption\nv/a.mp4?x=1,"one\nv/b.mp4?x=1,two"\n',
        'file,caption\na.webm.part,"one\nb.webm.part,two"\n',
        'videoid,name\n1,"one\n2,two"\n',
        'videoid,page_dir,name\n1,p,"one\n2,p,two"\n',
        'narration_id,verb_class,noun_class,narration\nP01_1,1,2,"one\nP01_2,1,2,two"\n',
        'label,youtube_id,time_start,time_end,split\n"run,abc,0,10,train\nwalk,abd,0,10,train\nwalk",abe,0,10,train\n',
        'label,youtube_id,time_start,time_end,split\nrun,-7cPn3AyqKo,0,1,"a\nwalk,x_Y12345678,0,10,train"\n',
        'caption,file\n"one,a\ntwo,b\nthree",c\n',
        'video,caption\nvids/horse,"a horse runs\nvids/cat,a cat walks\nvids/dog,a dog sleeps 12"\n',
        'file,caption\nbend_a,"one\nrun_left_bb,two"\n',
        'file,caption\nS01/bend,"one\nS02/runs_1,two"\n',
        'file,caption\nframes/a.zip,"one\nframes/bbb.zip,two"\n',
        'file,caption\n-7cPn3AyqKo,"one\nqwertyuiopa,two"\n',
    ],
)
def test_what_may_be_other_rows_is_left_out_and_named(tmp_path: Path, text: str) -> None:
    """Without extensions nothing tells a name from a word of a caption for certain."""
    head = text.partition("\n")[0].split(",")
    found = listed(
        tmp_path, text + ",".join("9" for _ in head) + "\n", label="verb" if "verb_class" in head else "label"
    )
    assert len(found.entries) == 1 and "9" in found.entries[0].path
    [problem] = found.problems
    assert problem.reason == "bad_row"
    assert "x.csv line 2: a field of" in problem.detail and "may be other rows in it: close its" in problem.detail


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ('file,caption,label,group\na.mp4,"Look at\nthis video, b.mp4",x,y\n', "Look at this video, b.mp4"),
        ('file,caption\na.mp4,"Steps:\nopen it, then see clip.mp4"\n', "Steps: open it, then see clip.mp4"),
        ('file,caption\na.mp4,"A dog\nruns, fast"\n', "A dog runs, fast"),
        ('file,caption\na,"A dog\nit runs, fast"\n', "A dog it runs, fast"),
        ('file,caption,label\na,"A dog\nand b, who runs\nwith c",x\n', "A dog and b, who runs with c"),
        ('videoid,name\n1,"one\nand two, too"\n', "one and two, too"),
        ('id,file,caption\n1,a b.mp4,"A person bends.\nFirst, the arms hang, then back"\n',
         "A person bends. First, the arms hang, then back"),
        ('file,caption\nvid001,"A man on stage,\nsmiling, walks off"\n', "A man on stage, smiling, walks off"),
        ('caption,file\n"one\ntwo, three",a\n', "one two, three"),
        ('file;caption\na;"A man,\nsmiling; walks"\n', "A man, smiling; walks"),
        ('file,caption\na.mp4,"He is in the\nU.S., walking"\n', "He is in the U.S., walking"),
        ('file,caption\na.mp4,"Steps:\n1., a man\n2., a dog"\n', "Steps: 1., a man 2., a dog"),
        ('file,caption\nvids/horse,"A man stands,\nwaves, smiles"\n', "A man stands, waves, smiles"),
        ('file,caption\n-7cPn3AyqKo,"Two men\nstand, and a dog, too"\n', "Two men stand, and a dog, too"),
    ],
)  # fmt: skip
def test_a_text_of_several_lines_is_a_text(tmp_path: Path, text: str, caption: str) -> None:
    (entry,) = listed(tmp_path, text).entries
    assert entry.captions == [caption]


def test_an_open_mark_in_the_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.csv line 2: a name of a column has several lines, with what"):
        listed(tmp_path, '\nfile,"caption\nv1,one\nv2,two"\nv3,three\n')


def test_a_heading_of_two_lines_is_a_heading(tmp_path: Path) -> None:
    (entry,) = listed(tmp_path, 'file,caption,"notes\n(from me)"\na.mp4,one,x\n').entries
    assert entry.captions == ["one"]
