#!/bin/sh
# mmdebstrap customize hook: $1 is the guest's root file system.
# What a measured guest does not need is off: under emulation each service costs CPU seconds in every guest.
set -eu
root=$1

# One folder matches every slot that QEMU may give the network card. No gateway: the guests talk to nobody but SSH.
cat > "$root/etc/systemd/network/10-testbed.network" <<'EOF'
[Match]
Name=en* eth*
[Network]
Address=10.0.2.15/24
LinkLocalAddressing=no
IPv6AcceptRA=no
EOF

echo '/dev/vda / ext4 rw,noatime 0 0' > "$root/etc/fstab"

# All of cloud-init's work is done in its first stage (the seed says `dsmode: local`).
cat > "$root/etc/cloud/cloud.cfg" <<'EOF'
disable_root: false
users: []
locale: false
network: {config: disabled}
ssh_genkeytypes: [ed25519]
datasource_list: [NoCloud]
cloud_init_modules: [write-files, set_hostname, users-groups, ssh, runcmd, scripts-user]
cloud_config_modules: []
cloud_final_modules: []
system_info:
  distro: debian
  paths: {cloud_dir: /var/lib/cloud/, templates_dir: /etc/cloud/templates/}
EOF
echo 'datasource_list: [NoCloud]' > "$root/etc/cloud/cloud.cfg.d/90_dpkg.cfg"

for unit in \
    cloud-init.service cloud-config.service cloud-final.service cloud-init-hotplugd.socket \
    getty@tty1.service serial-getty@ttyS0.service console-getty.service systemd-logind.service systemd-user-sessions.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-tmpfiles-clean.timer \
    systemd-timesyncd.service systemd-networkd-wait-online.service systemd-journal-flush.service \
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-machine-id-commit.service \
    systemd-pstore.service systemd-remount-fs.service modprobe@.service kmod-static-nodes.service \
    systemd-sysusers.service systemd-modules-load.service systemd-network-generator.service systemd-sysctl.service \
    systemd-tmpfiles-setup-dev.service systemd-random-seed.service \
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount \
    dev-hugepages.mount dev-mqueue.mount proc-sys-fs-binfmt_misc.automount; do
  ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -sf /lib/systemd/system/systemd-networkd.service "$root/etc/systemd/system/multi-user.target.wants/"

# The disk's driver is all that the initrd has to bring; devtmpfs names the disk without udev.
rm -f "$root"/usr/share/initramfs-tools/hooks/udev "$root"/usr/share/initramfs-tools/hooks/fsck \
    "$root"/usr/share/initramfs-tools/scripts/init-top/udev "$root"/usr/share/initramfs-tools/scripts/init-bottom/udev
echo 'MODULES=list' > "$root/etc/initramfs-tools/conf.d/testbed"
echo 'COMPRESS=lz4' >> "$root/etc/initramfs-tools/conf.d/testbed"
printf 'virtio_pci\nvirtio_blk\n' >> "$root/etc/initramfs-tools/modules"
chroot "$root" update-initramfs -u -k all

# What must differ from guest to guest is made at the first boot.
: > "$root/etc/machine-id"
rm -f "$root"/etc/ssh/ssh_host_* "$root"/var/lib/dbus/machine-id "$root"/var/lib/systemd/random-seed
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*
