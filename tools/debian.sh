#!/bin/sh
# Run a command with another RabbitMQ or another Python, taken from a newer Debian.
#
#   tools/debian.sh rabbitmq 4.0 COMMAND…   OTP_TEST_RABBITMQ_SERVER names the rabbitmq-server of that version
#   tools/debian.sh python 3.13 COMMAND…    the command runs inside the Debian that has this Python
#
# The Debian is a folder that debootstrap fills once (500 MB, 1 to 4 minutes) from the mirror of this machine's apt
# sources. Its programs run by chroot. All mounts are in a mount namespace of the command, so none is left behind.
# Needs Debian, root, and the right to mount. `rm -rf /var/cache/otp-stream` removes everything; sid is then newer.
set -eu

FOLDER=/var/cache/otp-stream
EDITION=1  # raise it when what `build` puts into the folder changes
PACKAGES=ca-certificates,curl,git,make,openssl,procps,python3-venv,rabbitmq-server,redis-server

fail() {
  echo "tools/debian.sh: $*" >&2
  exit 1
}

# The address of a Debian mirror, from apt sources of either format.
mirror() {
  apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(RELEASE) $(REPO_URI)' \
    | awk '$1 == "Debian" && $2 == "main" && $3 !~ /-|\// && $4 ~ /^https?:/ {print $4; exit}'
}

install_debootstrap() {
  command -v debootstrap >/dev/null && return
  echo "installing debootstrap …" >&2
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -q debootstrap >/dev/null 2>&1 && return
  apt-get update -q >/dev/null && apt-get install -y -q debootstrap >/dev/null || fail "debootstrap cannot be installed"
}

# Fill the folder, or leave it as it is. It gets its name when it is complete.
build() {
  [ -e "$root" ] && return
  command -v apt-get >/dev/null || fail "Debian $suite comes from the mirror of apt, and this machine has no apt"
  unshare --mount true || fail "this machine does not allow mounts, which Debian $suite needs (in Docker: --privileged)"
  install_debootstrap
  source=$(mirror)
  [ "$source" ] || { apt-get update -q >/dev/null && source=$(mirror); }
  [ "$source" ] || fail "the apt sources of this machine name no Debian mirror"
  echo "preparing Debian $suite in $root, once; this takes minutes …" >&2
  rm -rf --one-file-system "$root.part"
  unshare --mount debootstrap --variant=minbase --include="$PACKAGES" "$suite" "$root.part" "$source" \
    > "$root.log" 2>&1 || { tail -n 20 "$root.log" >&2; fail "debootstrap failed, see $root.log"; }
  rm -f "$root.part/etc/hosts" "$root.part/etc/resolv.conf"  # places for those of this machine
  touch "$root.part/etc/hosts" "$root.part/etc/resolv.conf"
  printf '#!/bin/sh\nexit 101\n' > "$root.part/usr/sbin/policy-rc.d"  # packages that are added start no service
  chmod +x "$root.part/usr/sbin/policy-rc.d"
  mkdir -p "$root.part/otp/bin"
  enter > "$root.part/otp/enter"
  chmod +x "$root.part/otp/enter"
  for it in rabbitmq-server rabbitmqctl rabbitmq-diagnostics rabbitmq-plugins rabbitmq-queues rabbitmq-upgrade; do
    ln -s ../enter "$root.part/otp/bin/$it"
  done
  mv "$root.part" "$root"
}

# A program that runs a command in the Debian that it is in; as rabbitmqctl and the like it runs that.
# The Debian has its own system folders and this machine's others: /home, /tmp and so on.
enter() {
  cat <<'END'
#!/bin/sh
name=${0##*/}
[ "$name" = enter ] || set -- "/usr/lib/rabbitmq/bin/$name" "$@"
exec unshare --mount sh -ec '
  root=$1; shift
  mount --bind "$root" "$root"  # only a root that is a mount point can be unshared again
  for it in /* /var/tmp /var/cache/otp-stream /etc/hosts /etc/resolv.conf /etc/ssl/certs /etc/pip.conf /etc/xdg/pip; do
    case $it in /bin | /boot | /etc | /lib* | /lost+found | /otp | /run | /sbin | /usr | /var) continue ;; esac
    if [ -d "$it" ]; then mkdir -p "$root$it"
    elif [ -f "$it" ]; then [ -e "$root$it" ] || : > "$root$it"
    else continue
    fi
    mount --rbind "$it" "$root$it"
  done
  exec chroot "$root" /usr/bin/env -C "$PWD" "$@"' sh "${0%/otp/*}" "$@"
END
}

# The version of a package in the folder, as in 4.0.
version_of() {
  "$root/otp/enter" dpkg-query --show --showformat '${Version}' "$1" | sed -E 's/^([0-9]+:)?([0-9]+\.[0-9]+).*/\2/'
}

[ $# -ge 3 ] || fail "usage: tools/debian.sh rabbitmq|python VERSION COMMAND…"
kind=$1 version=$2
shift 2
case $kind-$version in
  rabbitmq-4.0 | python-3.13) suite=trixie ;;
  rabbitmq-4.* | python-3.14) suite=sid ;;
  *) fail "no Debian is known that has $kind $version; there are rabbitmq 4.0, 4.3 and python 3.13, 3.14" ;;
esac
[ "$(id -u)" = 0 ] || fail "only root can run $kind $version from Debian $suite: it needs mounts and chroot"
root=$FOLDER/$suite-$EDITION
mkdir -p "$FOLDER"
(
  exec 9> "$FOLDER/$suite.lock"
  flock 9  # two runs that start at once prepare it once
  build 9>&-
)
case $kind in rabbitmq) package=rabbitmq-server ;; python) package=python3 ;; esac
found=$(version_of "$package")
[ "$found" = "$version" ] || fail "Debian $suite in $root has $kind $found, not $version"
case $kind in
  rabbitmq)
    OTP_TEST_RABBITMQ_SERVER=$root/otp/bin/rabbitmq-server exec "$@"
    ;;
  python)
    exec "$root/otp/enter" env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
      OTP_TEST_RABBITMQ_SERVER="${OTP_TEST_RABBITMQ_SERVER:-/usr/lib/rabbitmq/bin/rabbitmq-server}" "$@"
    ;;
esac
