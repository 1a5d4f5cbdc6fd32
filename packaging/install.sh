#!/bin/sh
# Installs Causeway's agent (or hub) from a release and joins this host:
#
#   curl -fsSL https://RELEASES/install.sh | sh -s -- --from https://RELEASES [--token TOKEN|@FILE|-]
#
# RELEASES is where the files of a release are: a web server's directory, or a
# directory of this host. Every file is checked against SHA256SUMS before it is used, and that
# file itself with --key (the release's public key, as a file or 'ssh-ed25519 AAAA…': its
# signature) or --sums SHA256. It can be run again: what is there already stays.
set -eu

from='' token='' sums='' key='' package=causeway-agent
usage() {
	echo "usage: install.sh --from URL|DIR [--token TOKEN|@FILE|-] [--key PUBLICKEY] [--sums SHA256 of SHA256SUMS] [--hub]" >&2
	exit 2
}
die() {
	echo "install.sh: $*" >&2
	exit 1
}
need() { [ -n "${2-}" ] || usage; }

while [ "$#" -gt 0 ]; do
	case "$1" in
	--from) need "$@" && from=$2 && shift ;;
	--token) need "$@" && token=$2 && shift ;;
	--sums) need "$@" && sums=$2 && shift ;;
	--key) need "$@" && key=$2 && shift ;;
	--hub) package=causeway-hub ;;
	*) usage ;;
	esac
	shift
done
[ -n "$from" ] || usage
[ "$(id -u)" = 0 ] || die "run it as root"
[ "$package" = causeway-agent ] || [ -z "$token" ] || die "--token is for agents"

case "$(uname -m)" in
x86_64) arch=amd64 ;;
aarch64) arch=arm64 ;;
*) die "there are packages for amd64 and arm64 only, not for $(uname -m)" ;;
esac
if command -v apt-get >/dev/null; then
	kind=deb
elif command -v dnf >/dev/null; then
	kind=rpm
else
	die "neither apt-get nor dnf is here; install the package by hand"
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
fetch() {
	case "$from" in
	https://* | http://localhost* | http://127.*)
		if command -v curl >/dev/null; then
			# A redirect leads to https alone, wherever it comes from.
			curl -fsSL --proto '=https,http' --proto-redir '=https' -o "$tmp/$1" "$from/$1" || die "cannot fetch $from/$1 (a redirect to plain http is not followed)"
		else
			# wget cannot say where redirects may lead.
			wget -q --max-redirect=0 -O "$tmp/$1" "$from/$1" || die "cannot fetch $from/$1 (wget follows no redirect here; install curl for a server that has them)"
		fi
		;;
	http://*) die "not over plain http: $from" ;;
	*) cp "$from/$1" "$tmp/$1" || die "no $1 in $from" ;;
	esac
}

fetch SHA256SUMS
if [ -n "$sums" ]; then
	[ "$(sha256sum <"$tmp/SHA256SUMS" | cut -d' ' -f1)" = "$sums" ] || die "SHA256SUMS is not the one asked for"
fi
if [ -n "$key" ]; then
	command -v ssh-keygen >/dev/null || die "--key takes ssh-keygen: install openssh-client (openssh)"
	case "$key" in
	ssh-ed25519\ *) ;;
	*) key=$(cat "$key") || exit 1 ;;
	esac
	case "$key" in
	ssh-ed25519\ *) printf 'release %s\n' "$key" >"$tmp/signers" ;;
	*) die "--key is no public key 'ssh-ed25519 AAAA…', and names no file with one" ;;
	esac
	fetch SHA256SUMS.sig
	ssh-keygen -Y verify -f "$tmp/signers" -I release -n causeway-release -s "$tmp/SHA256SUMS.sig" <"$tmp/SHA256SUMS" >/dev/null ||
		die "SHA256SUMS is not signed by that key"
elif [ -z "$sums" ]; then
	echo "install.sh: the release's signature is not checked; --key PUBLICKEY does" >&2
fi
line=$(grep -E "^[0-9a-f]{64}  ${package}_[^/ ]*_${arch}\\.${kind}\$" "$tmp/SHA256SUMS") || die "the release has no $package for $arch as $kind"
[ "$(printf '%s\n' "$line" | wc -l)" -eq 1 ] || die "the release has several $package for $arch"
file=${line#*  }
fetch "$file"
(cd "$tmp" && printf '%s\n' "$line" | sha256sum -c --status) || die "$file is damaged: its checksum is not that of SHA256SUMS"

# apt reads as a user of its own.
chmod 755 "$tmp"
chmod 644 "$tmp/$file"
case "$kind" in
deb) DEBIAN_FRONTEND=noninteractive apt-get install -q -y "$tmp/$file" ;;
rpm) dnf install -q -y "$tmp/$file" ;;
esac

if [ "$package" = causeway-hub ]; then
	causeway-hub init
	exit 0
fi
if [ -e /var/lib/causeway-agent/identity.json ]; then
	[ -z "$token" ] || echo "install.sh: this host has joined already, the token is not used"
elif [ -n "$token" ]; then
	# By standard input: a command line is for everybody to see.
	case "$token" in
	- | @*) causeway-agent join "$token" ;;
	*) printf '%s\n' "$token" | causeway-agent join - ;;
	esac
else
	echo "next: causeway-agent join TOKEN && systemctl enable --now causeway-agent"
	exit 0
fi
if [ -d /run/systemd/system ]; then
	systemctl enable -q --now causeway-agent
fi
