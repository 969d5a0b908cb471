#!/bin/sh
# Lays out the root directory of an image: programs, the libraries they load, and what a process expects of a system.
# Nothing else: no shell, no package manager, no libraries that nobody loads.
#
#   rootfs.sh DIRECTORY PROGRAM…
#
# Runs on a Debian of at least the release the programs were built on, in an image build or on the machine itself.
# Files keep their paths. /usr/share/hone/packages.txt names the Debian packages they come from, for the SBOM.
set -eu
root=$1
shift

mkdir -p "$root/usr/lib" "$root/usr/lib64" "$root/usr/bin" "$root/etc/ssl/certs" "$root/usr/share/hone" "$root/usr/share/doc"
for dir in lib lib64 bin; do
  [ -e "$root/$dir" ] || ln -s "usr/$dir" "$root/$dir"
done
[ -d "$root/tmp" ] || mkdir -m 1777 "$root/tmp"

files=$(mktemp)
printf '%s\n' "$@" >"$files"
for program in "$@"; do
  # A static program makes ldd fail.
  loaded=$(ldd "$program" 2>/dev/null) || continue
  case $loaded in
    *"not found"*)
      echo "rootfs.sh: $program loads what is not here:" >&2
      echo "$loaded" | grep 'not found' >&2
      exit 1
      ;;
  esac
  echo "$loaded" | grep -o '/[^ ]*' >>"$files"
done

sort -u "$files" | while read -r file; do
  cp --dereference --parents "$file" "$root"
  # Our own programs are in no package. dpkg knows files below / or below /usr, whichever they were packaged as.
  real=$(readlink -f "$file")
  package=$(dpkg-query -S "$real" 2>/dev/null || dpkg-query -S "${real#/usr}" 2>/dev/null || true)
  [ -z "$package" ] || echo "${package%%:*}"
done | sort -u >"$files.packages"

cp --dereference /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
cp --dereference /etc/os-release /etc/debian_version "$root/etc/"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
cat >"$root/etc/passwd" <<'PASSWD'
root:x:0:0:root:/:/sbin/nologin
hone:x:65532:65532:Hone:/:/sbin/nologin
PASSWD
printf 'root:x:0:\nhone:x:65532:\n' >"$root/etc/group"

for package in $(cat "$files.packages") ca-certificates; do
  dpkg-query -W -f '${Package} ${Version} ${source:Package}\n' "$package" | head -n 1
  # Licences ask to be passed on.
  [ ! -e "/usr/share/doc/$package/copyright" ] || cp --dereference --parents "/usr/share/doc/$package/copyright" "$root"
done | sort -u >"$root/usr/share/hone/packages.txt"
rm -f "$files" "$files.packages"
