"""Public-domain English texts out of Debian packages.

Shared by make_demo_dataset.py and make_base_model.py. Packages are downloaded with apt-get and unpacked
into a cache folder; nothing is installed except libsword-utils, whose `mod2imp` reads the SWORD modules.
Only the Python standard library is used.
"""

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import unicodedata
import zlib
from pathlib import Path

CACHE = Path(os.environ.get("HONE_TEXT_CACHE", Path.home() / ".cache" / "hone-texts"))

# Package, the version the committed files were made from, and why the text may be used.
SOURCES = {
    "sword-text-kjv": ("14.3-1", "King James Version; public domain (1611; outside UK letters patent)"),
    "sword-text-web": ("426.0-1", "World English Bible; dedicated to the public domain"),
    "r-cran-janeaustenr": ("1.0.0-1", "six novels by Jane Austen (1811-1817); public domain"),
    "dict-devil": ("1.0-13.1", "The Devil's Dictionary by Ambrose Bierce (1911); public domain"),
}


def package(name):
    """Folder with the unpacked contents of a Debian package."""
    root = CACHE / name
    if root.is_dir():
        return root
    work = CACHE / f".{name}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", name], cwd=work)
    (deb,) = work.glob("*.deb")
    version = subprocess.run(["dpkg-deb", "-f", deb, "Version"], check=True, capture_output=True, text=True).stdout.strip()
    if version != SOURCES[name][0]:
        print(f"note: {name} {version} differs from {SOURCES[name][0]}; the result may differ too", file=sys.stderr)
    run(["dpkg-deb", "-x", deb, work / "tree"])
    (work / "tree").rename(root)
    shutil.rmtree(work)
    return root


def run(command, **options):
    try:
        subprocess.run([str(c) for c in command], check=True, **options)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"`{' '.join(map(str, command))}` failed: {error}; this script needs Debian with network access to its archive")


# ---- SWORD modules ---------------------------------------------------------------------------------


def sword_entries(name, module):
    """(key, markup) of every entry of a SWORD module, in order."""
    if not shutil.which("mod2imp"):
        run(["apt-get", "-qq", "install", "-y", "--no-install-recommends", "libsword-utils"])
    root = package(name) / "usr/share/sword"
    out = subprocess.run(["mod2imp", module], env={**os.environ, "SWORD_PATH": str(root)}, capture_output=True, check=True).stdout
    key = None
    lines = []
    for line in out.decode("utf-8", "replace").splitlines():
        if line.startswith("$$$"):
            if key is not None:
                yield key, "\n".join(lines)
            key, lines = line[3:].strip(), []
        else:
            lines.append(line)
    if key is not None:
        yield key, "\n".join(lines)


def plain(markup):
    """The words of OSIS markup: no notes, titles or tags, single spaces."""
    markup = re.sub(r"<(note|title)\b.*?</\1>", " ", markup, flags=re.S)
    markup = re.sub(r"<[^>]*>", "", markup)
    for name, character in (("lt", "<"), ("gt", ">"), ("quot", '"'), ("apos", "'"), ("amp", "&")):
        markup = markup.replace(f"&{name};", character)
    return re.sub(r"\s+", " ", markup.replace("¶", " ")).strip()


def verses(name, module):
    """{(book, chapter, verse): text} in canonical order."""
    found = {}
    for key, markup in sword_entries(name, module):
        match = re.fullmatch(r"(.+) (\d+):(\d+)", key)
        text = plain(markup)
        if match and int(match[2]) and int(match[3]) and text:
            found[match[1], int(match[2]), int(match[3])] = text
    return found


def king_james():
    return verses("sword-text-kjv", "engKJV2006eb")


def world_english():
    return verses("sword-text-web", "engWEB2015eb")


# ---- Jane Austen, out of an R lazy-load database --------------------------------------------------


class RReader:
    """As much of R's serialization format (XDR, versions 2 and 3) as character vectors in lists need."""

    def __init__(self, data):
        self.data = io.BytesIO(data)
        self.references = []
        if self.data.read(2) != b"X\n":
            raise ValueError("not an XDR serialization")
        version = self.integer()
        self.data.read(8)
        if version == 3:
            self.data.read(self.integer())

    def integer(self):
        return struct.unpack(">i", self.data.read(4))[0]

    def item(self):
        flags = self.integer()
        kind, has_attributes, has_tag = flags & 0xFF, flags & 0x200, flags & 0x400
        if kind in (254, 253, 251, 242, 241):
            return None
        if kind == 255:
            return self.references[(flags >> 8) - 1 if flags >> 8 else self.integer() - 1]
        if kind == 1:
            name = self.item()
            self.references.append(name)
            return name
        if kind == 2:
            pairs = []
            while kind == 2:
                if has_attributes:
                    self.item()
                tag = self.item() if has_tag else None
                pairs.append((tag, self.item()))
                flags = self.integer()
                kind, has_attributes, has_tag = flags & 0xFF, flags & 0x200, flags & 0x400
            return dict(pairs)
        if kind == 9:
            length = self.integer()
            return None if length < 0 else self.data.read(length).decode("utf-8", "replace")
        if kind in (10, 13):
            length = self.integer()
            value = list(struct.unpack(f">{length}i", self.data.read(4 * length)))
        elif kind == 14:
            length = self.integer()
            value = list(struct.unpack(f">{length}d", self.data.read(8 * length)))
        elif kind in (16, 19):
            value = [self.item() for _ in range(self.integer())]
        else:
            raise ValueError(f"R type {kind} is not expected here")
        if has_attributes:
            names = (self.item() or {}).get("names")
            if kind == 19 and names:
                return dict(zip(names, value))
        return value


def decompress(blob):
    """A whole file of one of the compressors R writes."""
    if blob.startswith(b"BZh"):
        return bz2.decompress(blob)
    return lzma.decompress(blob) if blob.startswith(b"\xfd7zXZ") else zlib.decompress(blob, wbits=47)


def r_unpack(blob):
    """Decompresses one record of a lazy-load database."""
    kind = blob[4:5]
    if kind == b"Z":
        return lzma.decompress(blob[5:], format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}])
    return zlib.decompress(blob[4:])


NOVELS = ["sensesensibility", "prideprejudice", "mansfieldpark", "emma", "northangerabbey", "persuasion"]


def austen():
    """[(novel, paragraph)] of the six novels."""
    data = package("r-cran-janeaustenr") / "usr/lib/R/site-library/janeaustenr/data"
    index = RReader(decompress((data / "Rdata.rdx").read_bytes())).item()["variables"]
    blob = (data / "Rdata.rdb").read_bytes()
    found = []
    for novel in NOVELS:
        start, length = index[novel]
        lines = RReader(r_unpack(blob[start : start + length])).item()
        for paragraph in "\n".join(lines).split("\n\n"):
            text = re.sub(r"\s+", " ", paragraph).strip().replace("--", "—").replace("_", "")
            if len(text) > 60 and text.upper() != text:
                found.append((novel, text))
    return found


# ---- The Devil's Dictionary, out of a dictd database ----------------------------------------------


def devils_dictionary():
    """[(word, definition)], verse quotations left out."""
    root = package("dict-devil") / "usr/share/dictd"
    text = gzip.decompress((root / "devil.dict.dz").read_bytes()).decode("utf-8", "replace")
    found = []
    for line in (root / "devil.index").read_text().splitlines():
        word, start, length = line.split("\t")
        if word.startswith("00"):
            continue
        entry = text.encode()[base64(start) : base64(start) + base64(length)].decode("utf-8", "replace")
        body = re.split(r"\n\s*\n", entry.strip())[0]
        body = re.sub(r"\s+", " ", unicodedata.normalize("NFC", body)).strip()
        match = re.match(r"([A-Z][A-Z' -]+),\s*((?:n|adj|v\.[it]|adv|pp|x|n\.pl)\.)\s*(.+)", body)
        if match:
            found.append((match[1].lower(), match[3]))
    return found


def base64(digits):
    """A dictd index number."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    value = 0
    for digit in digits:
        value = value * 64 + alphabet.index(digit)
    return value
