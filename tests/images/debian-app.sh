#!/bin/sh
# Makes an OCI archive of a program of Debian's with what it needs: mmdebstrap for the files, buildah for the image.
# Usage: debian-app.sh OUTPUT nginx|redis|postgresql|node|systemd|peers
set -eu
output=$1
app=$2
user=
stop=
case $app in
nginx) packages=nginx-light command='["nginx", "-g", "daemon off;"]' stop=SIGQUIT ;;
redis) packages=redis-server command='["redis-server", "--save", ""]' ;;
# Its cluster is made at the first start, by whoever it runs as.
postgresql) packages=postgresql command='["/usr/lib/postgresql/15/bin/postgres"]' user=postgres stop=SIGINT ;;
# semver as Debian packages it from npm.
node) packages=nodejs,node-semver command='["node"]' ;;
# What talks by a network, to be either side of it.
peers)
    packages=nginx-light,wrk,curl,redis-server,postgresql-client,bind9-dnsutils,dnsmasq-base,iputils-ping,openssh-server,openssh-client
    packages=$packages,socat,iperf3,iproute2,procps command='["bash"]'
    ;;
systemd) packages=systemd,systemd-sysv,dbus command='["/sbin/init"]' ;;
*)
    echo "$0: there is no recipe for $app" >&2
    exit 2
    ;;
esac
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mmdebstrap --quiet --variant=minbase --include="$packages" bookworm "$scratch/root.tar"
store="--root $scratch/store --runroot $scratch/run --storage-driver overlay"
container=$(buildah $store from scratch)
buildah $store add --quiet "$container" "$scratch/root.tar" /
if [ "$app" = systemd ]; then
    # Looks how far the system came once it has, and ends it with a code that says so: nobody hears what systemd says.
    mkdir "$scratch/units"
    cat >"$scratch/units/report.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/report
UNIT
    cat >"$scratch/units/report.timer" <<'UNIT'
[Timer]
OnActiveSec=0
AccuracySec=1us
UNIT
    cat >"$scratch/report" <<'SCRIPT'
#!/bin/sh
# Every line has a code of its own.
check() {
    code=$1
    shift
    "$@" >/dev/null || exec systemctl --no-block exit "$code"
}
check 41 systemctl is-active multi-user.target
check 42 systemctl is-active dbus.socket
check 43 test "$(stat -fc %T /run /run/lock | uniq)" = tmpfs
check 44 grep -qx 0::/system.slice/report.service /proc/self/cgroup
check 45 systemd-detect-virt --container
check 46 grep -q memory /sys/fs/cgroup/cgroup.subtree_control
test -e /stays || exec systemctl --no-block exit 7
SCRIPT
    chmod 755 "$scratch/report"
    buildah $store add --quiet "$container" "$scratch/report" /report
    mkdir "$scratch/units/multi-user.target.wants"
    ln -s ../report.timer "$scratch/units/multi-user.target.wants/report.timer"
    buildah $store add --quiet "$container" "$scratch/units" /etc/systemd/system
fi
buildah $store config --cmd "$command" ${user:+--user "$user"} ${stop:+--stop-signal "$stop"} \
    --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
buildah $store commit --quiet --rm "$container" "oci-archive:$output:$app:latest"
