import subprocess,sys,time
p=subprocess.Popen(sys.argv[1:])
pk={}
while p.poll() is None:
    try:
        for l in open(f'/proc/{p.pid}/status'):
            k=l.split(':')[0]
            if k in('RssAnon','RssFile','VmHWM','RssShmem'): pk[k]=max(pk.get(k,0),int(l.split()[1])>>10)
    except Exception: pass
    time.sleep(.005)
print(pk)
