"""Which template and commit a project was made from, read from git's files: hooks run no git. Python 3.10.

The working files are compared with the commit's own tree, so that staged, unstaged and untracked changes all show.
"""

import glob
import hashlib
import os
import re
import struct
import zlib

UNKNOWN = "unknown"
ARCHIVED = ".git_archival.txt"  # `git archive` writes the commit into it
NAME = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
SUBMODULE, LINK = "160000", "120000"
KINDS = {1: "commit", 2: "tree", 3: "blob", 4: "tag"}
SHORT = {"gh": "https://github.com/", "gl": "https://gitlab.com/", "bb": "https://bitbucket.org/"}  # cookiecutter's


def commit(template: str, used: list[str]) -> str:
    """Name of the commit, with `-dirty` when a file of the template differs from it; `unknown` where none can be read.

    `used`: files that the project was made of, relative to the template: one that git does not know is a difference.
    """
    try:
        git = _git_folder(template)
        if not git:
            return _archived(template)
        common = _common(git)
        head = _resolve("HEAD", git, common)
        tree = Objects(os.path.join(common, "objects")).files(head)
    except (OSError, ValueError, LookupError, struct.error, zlib.error):
        return UNKNOWN
    clean = all(path in tree for path in used) and all(_same(template, path, *entry) for path, entry in tree.items())
    return head if clean else f"{head}-dirty"


def address(template: str) -> str:
    """Where anybody may clone the template that was baked from, without a login; empty for a place on this machine."""
    if short := re.fullmatch(r"(gh|gl|bb):([\w.-]+/[\w.-]+)", template):
        return f"{SHORT[short[1]]}{short[2]}.git"
    if web := re.fullmatch(r"(?:git\+)?(https?://)(?:[^/@\s]*@)?([^@?#\s]+)", template):
        return "" if web[2].endswith(".zip") else web[1] + web[2]
    shell = re.fullmatch(r"(?:git\+)?(ssh://[^?#\s]+|[\w.-]+@[\w.-]+:[^?#\s]+)", template)
    return shell[1] if shell and not re.search(r":[^/@]*@", shell[1][len("ssh://") :]) else ""


def _archived(template: str) -> str:
    found = NAME.search(_text(os.path.join(template, ARCHIVED)))
    return found[0] if found else UNKNOWN


def _text(path: str) -> str:
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().strip()


def _git_folder(template: str) -> str:
    """Folder with HEAD: `.git`, or where a worktree's `.git` file points to; empty without either."""
    git = os.path.join(template, ".git")
    if os.path.isfile(git):
        git = os.path.join(template, _text(git)[len("gitdir: ") :])
    return git if os.path.isfile(os.path.join(git, "HEAD")) else ""


def _common(git: str) -> str:
    """Folder that a worktree shares with its repository."""
    return os.path.join(git, _text(os.path.join(git, "commondir")) or ".")


def _resolve(ref: str, git: str, common: str) -> str:
    """The commit that `ref` names. Raises LookupError: no commit yet, or a format not known here."""
    for _ in range(5):
        value = _text(os.path.join(git, ref)) or _text(os.path.join(common, ref)) or _packed_ref(ref, common)
        if NAME.fullmatch(value):
            return value
        ref = value[len("ref: ") :]
    raise LookupError(ref)


def _packed_ref(ref: str, common: str) -> str:
    for line in _text(os.path.join(common, "packed-refs")).splitlines():
        name, _, label = line.partition(" ")
        if label == ref:
            return name
    raise LookupError(ref)


def _same(template: str, path: str, mode: str, name: str) -> bool:
    """Whether the working file has the content of the blob `name`."""
    place = os.path.join(template, path)
    if mode == SUBMODULE:
        return True
    try:
        if mode == LINK:
            return _blob_name(os.fsencode(os.readlink(place)), len(name)) == name
        with open(place, "rb") as file:
            content = file.read()
    except OSError:
        return False
    return name in (_blob_name(text, len(name)) for text in (content, content.replace(b"\r\n", b"\n")))


def _blob_name(content: bytes, length: int) -> str:
    digest = hashlib.sha1 if length == 40 else hashlib.sha256
    return digest(b"blob %d\0" % len(content) + content).hexdigest()


class Objects:
    """Git's object store: loose objects, packs and the stores that it borrows from."""

    def __init__(self, folder: str) -> None:
        borrowed = _text(os.path.join(folder, "info/alternates")).splitlines()
        self.folders = [folder] + [os.path.join(folder, path) for path in borrowed]
        self.packs: dict[str, tuple[bytes, bytes]] = {}

    def files(self, commit: str) -> dict[str, tuple[str, str]]:
        """Path: (mode, name) of every file of the commit. Raises LookupError when an object is not there."""
        kind, body = self.read(commit)
        if kind != "commit":
            raise LookupError(commit)
        return self._walk(body.split(b"\n", 1)[0].decode()[len("tree ") :], "")

    def _walk(self, name: str, prefix: str) -> dict[str, tuple[str, str]]:
        body, at, found = self.read(name)[1], 0, {}
        width = len(name) // 2
        while at < len(body):
            middle = body.index(b"\0", at)
            mode, _, label = body[at:middle].partition(b" ")
            at = middle + 1 + width
            path, child = prefix + os.fsdecode(label), body[middle + 1 : at].hex()
            if mode == b"40000":
                found.update(self._walk(child, path + "/"))
            else:
                found[path] = (mode.decode(), child)
        return found

    def read(self, name: str) -> tuple[str, bytes]:
        """Kind and content of one object."""
        for folder in self.folders:
            loose = os.path.join(folder, name[:2], name[2:])
            if os.path.isfile(loose):
                with open(loose, "rb") as file:
                    head, _, body = zlib.decompress(file.read()).partition(b"\0")
                return head.split()[0].decode(), body
            for index in glob.glob(os.path.join(glob.escape(folder), "pack", "*.idx")):
                offset = self._offset(index, bytes.fromhex(name))
                if offset >= 0:
                    return self._packed(index, offset)
        raise LookupError(name)

    def _open(self, index: str) -> tuple[bytes, bytes]:
        if index not in self.packs:
            with open(index, "rb") as table, open(index[: -len("idx")] + "pack", "rb") as pack:
                self.packs[index] = table.read(), pack.read()
        return self.packs[index]

    def _offset(self, index: str, name: bytes) -> int:
        """Where the object begins in the pack of this index (version 2), or -1."""
        table, _ = self._open(index)
        if table[:8] != b"\xfftOc\0\0\0\2":
            raise ValueError(index)
        fan = struct.unpack(">256I", table[8:1032])
        total, low, high = fan[255], fan[name[0] - 1] if name[0] else 0, fan[name[0]]
        for number in range(low, high):
            at = 1032 + number * len(name)
            if table[at : at + len(name)] == name:
                offsets = 1032 + total * (len(name) + 4)
                (offset,) = struct.unpack_from(">I", table, offsets + number * 4)
                if offset & 0x80000000:
                    (offset,) = struct.unpack_from(">Q", table, offsets + total * 4 + (offset & 0x7FFFFFFF) * 8)
                return int(offset)
        return -1

    def _packed(self, index: str, offset: int) -> tuple[str, bytes]:
        pack, at = self._open(index)[1], offset
        byte = pack[at]
        kind = byte >> 4 & 7
        while byte & 0x80:  # the size: zlib knows it
            at += 1
            byte = pack[at]
        at += 1
        if kind == 6:  # a difference to the object some bytes before
            back = pack[at] & 0x7F
            while pack[at] & 0x80:
                at += 1
                back = (back + 1) << 7 | pack[at] & 0x7F
            base = self._packed(index, offset - back)
            return base[0], _patch(base[1], _inflate(pack, at + 1))
        if kind == 7:  # a difference to the object named
            width = len(os.path.basename(index)) - len("pack-.idx") >> 1
            base = self.read(pack[at : at + width].hex())
            return base[0], _patch(base[1], _inflate(pack, at + width))
        return KINDS[kind], _inflate(pack, at)


def _inflate(pack: bytes, at: int) -> bytes:
    return zlib.decompressobj().decompress(memoryview(pack)[at:])


def _patch(base: bytes, delta: bytes) -> bytes:
    """The content that `delta` makes of `base`: copies out of the base, and bytes of its own."""
    at, out = 0, b""
    for _ in range(2):  # sizes of base and result
        while delta[at] & 0x80:
            at += 1
        at += 1
    while at < len(delta):
        order = delta[at]
        at += 1
        if order & 0x80:
            fields = []
            for bit in range(7):
                fields.append(delta[at] if order >> bit & 1 else 0)
                at += order >> bit & 1
            start = int.from_bytes(bytes(fields[:4]), "little")
            size = int.from_bytes(bytes(fields[4:]), "little") or 0x10000
            out += base[start : start + size]
        else:
            out += delta[at : at + order]
            at += order
    return out
