# Process 1 of the lab, from the initramfs: modules, then the host's root under a tmpfs.
export PATH=/bin
die() { echo "lab: $1 failed" >/dev/console; sleep 1; poweroff -f; }
mkdir -p /proc /sys /dev /host /over /root
mount -t proc proc /proc && mount -t sysfs sys /sys && mount -t devtmpfs dev /dev || die "mounting /proc"
for module in /modules/*; do
    insmod "$module" || die "loading ${module##*/}"
done
# loose: nobody changes the host's files under us, as far as we care. The size is the most that
# virtio's transport takes.
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host || die "mounting the host's root"
mount -t tmpfs -o mode=755,size=75% over /over && mkdir /over/upper /over/work || die "making room"
mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work over /root || die "the overlay"
for folder in proc sys dev; do
    mount -o move /$folder /root/$folder || die "moving /$folder"
done
mount -t tmpfs -o mode=755 run /root/run && mkdir /root/run/lab || die "mounting /run"
cp /bin/busybox /second.sh /command.sh /hold-vm /root/run/lab
# In this process: kernel threads share its root, and so find the host's modprobe.
exec switch_root /root /run/lab/busybox sh /run/lab/second.sh
