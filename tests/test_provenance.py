"""The commit that a project records, read from git's own files in every shape that git keeps them."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import provenance
import pytest
from conftest import PROJECT, BakedProject, environment, run

Git = Callable[..., str]


@pytest.fixture(scope="session")
def git(tmp_path_factory: pytest.TempPathFactory) -> Git:
    env = environment(tmp_path_factory.mktemp("home"))

    def _git(folder: Path, *words: str | Path) -> str:
        return str(run("git", *words, cwd=folder, env=env).stdout).strip()

    return _git


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory, git: Git) -> Path:
    """A repository of some commits whose files differ a little, so that packing makes deltas. Only to be copied."""
    folder = tmp_path_factory.mktemp("history")
    (folder / "part/deep").mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    for step in range(6):
        for number in range(40):
            lines = [f"line {line} of {number}" for line in range(100)]
            (folder / f"part/deep/file{number}.txt").write_text("\n".join([*lines, f"step {step}"]))
        (folder / "used.txt").write_text("used")
        (folder / "link").unlink(missing_ok=True)
        (folder / "link").symlink_to("used.txt")
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", f"step {step}")
    return folder


@pytest.fixture
def repository(tmp_path: Path, history: Path) -> Path:
    return Path(shutil.copytree(history, tmp_path / "repository", symlinks=True))


def commit(folder: Path) -> str:
    return provenance.commit(str(folder), ["used.txt"])


def test_loose_objects(repository: Path, git: Git) -> None:
    assert commit(repository) == git(repository, "rev-parse", "HEAD")


def test_packed_objects_with_deltas_and_packed_refs(repository: Path, git: Git) -> None:
    git(repository, "gc", "-q", "--aggressive", "--prune=now")
    packs = list((repository / ".git/objects/pack").glob("*.idx"))
    assert len(packs) == 1 and not list((repository / ".git/objects").glob("??"))
    assert "chain length" in git(repository, "verify-pack", "-v", packs[0])  # the control: there are deltas
    assert (repository / ".git/packed-refs").is_file() and not (repository / ".git/refs/heads/main").exists()
    assert commit(repository) == git(repository, "rev-parse", "HEAD")


def test_deltas_that_name_their_base(repository: Path, git: Git) -> None:
    git(repository, "config", "repack.useDeltaBaseOffset", "false")
    git(repository, "repack", "-q", "-a", "-d", "-f")
    assert commit(repository) == git(repository, "rev-parse", "HEAD")


def test_every_packed_object_is_read_as_git_reads_it(repository: Path, git: Git) -> None:
    git(repository, "gc", "-q", "--aggressive", "--prune=now")
    objects = provenance.Objects(str(repository / ".git/objects"))
    names = git(repository, "rev-list", "--objects", "--all").splitlines()
    for name in [line.split()[0] for line in names][::7]:
        kind = git(repository, "cat-file", "-t", name)
        shown = subprocess.run(["git", "cat-file", kind, name], cwd=repository, capture_output=True, check=True)
        assert objects.read(name) == (kind, shown.stdout)


def test_a_copy_of_64_kib_is_written_as_size_nought() -> None:
    """Git's pack format: a copy order without size bytes copies 65,536 bytes."""
    base = bytes(range(256)) * 300
    sizes = b"\x80\xd8\x04" + b"\x83\x80\x04"  # of the base and of the result
    assert provenance._patch(base, sizes + b"\x80" + b"\x03end") == base[:65536] + b"end"


def test_detached_head_worktree_and_borrowed_objects(repository: Path, git: Git, tmp_path: Path) -> None:
    first = git(repository, "rev-parse", "HEAD~2")
    git(repository, "checkout", "-q", first)
    assert commit(repository) == first
    git(repository, "worktree", "add", "-q", "-b", "other", tmp_path / "other", "main")
    assert commit(tmp_path / "other") == git(tmp_path / "other", "rev-parse", "HEAD") != first
    git(tmp_path, "clone", "-q", "--shared", repository, tmp_path / "shared")
    assert commit(tmp_path / "shared") == first
    git(tmp_path, "clone", "-q", "--depth", "1", "--branch", "main", f"file://{repository}", tmp_path / "shallow")
    assert commit(tmp_path / "shallow") == git(repository, "rev-parse", "main")


def test_sha256_repository(tmp_path: Path, git: Git) -> None:
    folder = tmp_path / "repository"
    git(tmp_path, "init", "-q", "--object-format=sha256", folder)
    (folder / "used.txt").write_text("used")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    git(folder, "gc", "-q")
    name = git(folder, "rev-parse", "HEAD")
    assert len(name) == 64 and commit(folder) == name
    (folder / "used.txt").write_text("changed")
    assert commit(folder) == f"{name}-dirty"


CHANGES: dict[str, Callable[[Path, Git], object]] = {
    "modified": lambda folder, git: (folder / "part/deep/file3.txt").write_text("changed"),
    "deleted": lambda folder, git: (folder / "part/deep/file3.txt").unlink(),
    "staged": lambda folder, git: ((folder / "used.txt").write_text("changed"), git(folder, "add", "-A")),
    "link": lambda folder, git: ((folder / "link").unlink(), (folder / "link").symlink_to("part")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_template_is_dirty(repository: Path, git: Git, change: str) -> None:
    CHANGES[change](repository, git)
    assert commit(repository) == git(repository, "rev-parse", "HEAD") + "-dirty"


def test_new_file_that_the_project_uses_is_dirty(repository: Path, git: Git) -> None:
    (repository / "new.txt").write_text("new")
    head = git(repository, "rev-parse", "HEAD")
    assert provenance.commit(str(repository), ["used.txt"]) == head
    assert provenance.commit(str(repository), ["used.txt", "new.txt"]) == f"{head}-dirty"
    git(repository, "add", "new.txt")
    assert provenance.commit(str(repository), ["used.txt", "new.txt"]) == f"{head}-dirty"


@pytest.mark.parametrize("state", ["no git", "no commit", "object lost", "unsubstituted archive"])
def test_unknown_where_nothing_can_be_read(repository: Path, git: Git, tmp_path: Path, state: str) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    if state == "no commit":
        git(folder, "init", "-q")
    elif state == "object lost":
        name = git(repository, "rev-parse", "HEAD^{tree}")
        (repository / ".git/objects" / name[:2] / name[2:]).unlink()
        folder = repository
    elif state == "unsubstituted archive":
        (folder / ".git_archival.txt").write_text("commit: $Format:%H$\n")
    assert commit(folder) == "unknown"


def test_bake_records_the_commit(bake: Callable[..., BakedProject], template: Path, git: Git) -> None:
    head = git(template, "rev-parse", "HEAD")
    assert bake(template=template).record()["commit"] == head
    (template / PROJECT / ".editorconfig").write_text("root = true\n")
    assert bake(template=template, project="second").record()["commit"] == f"{head}-dirty"
    git(template, "add", "-A")
    assert bake(template=template, project="third").record()["commit"] == f"{head}-dirty"
    git(template, "commit", "-q", "-m", "changed")
    assert bake(template=template, project="fourth").record()["commit"] == git(template, "rev-parse", "HEAD") != head


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("gh:acme/onemodel", "https://github.com/acme/onemodel.git"),
        ("https://git.example.org/acme/onemodel.git", "https://git.example.org/acme/onemodel.git"),
        ("git+https://me:secret@git.example.org/acme/onemodel", "https://git.example.org/acme/onemodel"),
        ("git@git.example.org:acme/onemodel.git", "git@git.example.org:acme/onemodel.git"),
        ("ssh://git@git.example.org/acme/onemodel", "ssh://git@git.example.org/acme/onemodel"),
        ("ssh://me:secret@git.example.org/acme/onemodel", ""),
        ("https://git.example.org/acme/onemodel?token=secret", ""),
        ("https://git.example.org/acme/onemodel.zip", ""),
        ("git+file:///srv/onemodel", ""),
        ("/srv/onemodel", ""),
        ("../onemodel", ""),
        ("C:\\onemodel", ""),
        ("", ""),
    ],
)
def test_an_address_is_recorded_where_others_may_clone_it_and_no_login_and_no_path(given: str, address: str) -> None:
    assert provenance.address(given) == address
