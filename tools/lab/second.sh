# Process 1 of the lab, once the host's root is its own: what programs expect, then the command.
busybox=/run/lab/busybox
die() { echo "lab: $1 failed" >/dev/console; $busybox sleep 1; $busybox poweroff -f; }
$busybox mkdir -p /dev/shm /dev/pts /run/lock /run/tmp
$busybox mount -t tmpfs -o mode=1777 shm /dev/shm || die "mounting /dev/shm"
$busybox mount -t devpts -o gid=5,mode=620,ptmxmode=666 pts /dev/pts || die "mounting /dev/pts"
$busybox chmod 1777 /run/lock /run/tmp
$busybox ln -sf /proc/self/fd /dev/fd
$busybox ln -sf fd/0 /dev/stdin
$busybox ln -sf fd/1 /dev/stdout
$busybox ln -sf fd/2 /dev/stderr
$busybox ip link set lo up || die "setting up the loopback interface"
$busybox hostname microvm-lab
# A guest larger than this machine touches little of its memory.
echo 1 >/proc/sys/vm/overcommit_memory
# The host tells of its ports one by one. Nobody makes links with their names: no udev runs here.
tries=0
until [ -c /dev/vport0p1 ] && [ -c /dev/vport0p2 ]; do
    [ $((tries += 1)) -lt 500 ] || die "finding the ports for the command's words"
    $busybox usleep 10000
done
[ -c /dev/kvm ] || die "finding /dev/kvm"
/run/lab/hold-vm & # says why itself: hold_vm.py
echo "lab: up" >/dev/console
. /run/lab/command.sh
