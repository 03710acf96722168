"""A quotation mark that is not closed takes other rows into a field: told, and texts of several lines are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgm_scale.data.lists.reading import Listing, Selection, read_list


def listed(tmp_path: Path, text: str, wanted: str = "caption") -> Listing:
    (tmp_path / "x.csv").write_text(text)
    return read_list(tmp_path / "x.csv", Selection(role="all", wanted="label" if wanted == "label" else "caption"))


@pytest.mark.parametrize(
    "text",
    [
        'file,caption\na,"one\nb,two\nc,three"\nd,four\n',
        'file,label,split,note\na,x,train,"good\nb,y,train,fine\nc,x,test,ok"\nd,y,test,\n',  # a column not read
        'file,caption,split\na,"one,train\nb,two",test\n',  # of the last row what is before the mark
        'file,caption\nA dog,"one\na cat,two"\n',  # names with blanks, as the row's own
        'file,caption\nv/a.mp4?x=1,"one\nv/b.mp4?x=1,two"\n',
        'file,caption\na.webm.part,"one\nb.webm.part,two"\n',
        'videoid,name\n1,"one\n2,two"\n',
        'videoid,page_dir,name\n1,p,"one\n2,p,two"\n',
        'narration_id,verb_class,noun_class,narration\nP01_1,1,2,"one\nP01_2,1,2,two"\n',
        'label,youtube_id,time_start,time_end,split\n"run,abc,0,10,train\nwalk,abd,0,10,train\nwalk",abe,0,10,train\n',
        'caption,file\n"one,a\ntwo,b\nthree",c\n',
        'file,caption\na.mp4,"one\nmy dog.mp4,two"\n',
    ],
)
def test_other_rows_in_a_field_are_told_by_the_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        ValueError, match=r"x.csv line 2: a field of \d lines, with other rows in it: close its .* line$"
    ):
        listed(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ('file,caption,label,group\na.mp4,"Look at\nthis video, b.mp4",x,y\n', "Look at this video, b.mp4"),
        ('file,caption\na.mp4,"Steps:\nopen it, then see clip.mp4"\n', "Steps: open it, then see clip.mp4"),
        ('file,caption\na.mp4,"A dog\nruns, fast"\n', "A dog runs, fast"),
        ('file,caption\na,"A dog\nit runs, fast"\n', "A dog it runs, fast"),
        ('file,caption,label\na,"A dog\nand b, who runs\nwith c",x\n', "A dog and b, who runs with c"),
        ('videoid,name\n1,"one\nand two, too"\n', "one and two, too"),
    ],
)  # fmt: skip
def test_a_text_of_several_lines_is_a_text(tmp_path: Path, text: str, caption: str) -> None:
    (entry,) = listed(tmp_path, text).entries
    assert entry.captions == [caption]
