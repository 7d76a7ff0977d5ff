"""Our GLB in other people's programs: the Khronos validator, and three.js beside our own renderer.

Needs node, Chromium and the npm packages three and gltf-validator, nowhere in this repository:

    npm install --prefix /somewhere three gltf-validator
    python -m benchmarks.gltf --modules /somewhere/node_modules -o OUT [FACE.glb]
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread

import torch

from nl3dmm.assets import embedded_template
from nl3dmm.data.crop import Crop
from nl3dmm.data.images import read_image
from nl3dmm.model import Face, FaceModel, Geometry, ModelConfig
from nl3dmm.nn.encoder import EncoderConfig
from nl3dmm.nn.uv_decoder import DecoderConfig
from nl3dmm.reconstruction import Reconstruction
from nl3dmm.synthetic.world import SyntheticWorld, WorldConfig
from nl3dmm.types import Latents, UVMaps

SIDE = 512
VALIDATE = """
const data = new Uint8Array(require('fs').readFileSync(process.argv[1]))
require(process.argv[2] + '/gltf-validator').validateBytes(data).then(report => console.log(JSON.stringify(report)))
"""
# Two pictures by the file's own camera, without light and lit, and one with the first expression at 1.
PAGE = """<!doctype html>
<script type="importmap">{"imports": {"three": "/modules/three/build/three.module.js"}}</script>
<script type="module">
import * as THREE from 'three'
import { GLTFLoader } from '/modules/three/examples/jsm/loaders/GLTFLoader.js'
const send = (name, body) => fetch('/result/' + name, { method: 'POST', body })
try {
  const gltf = await new GLTFLoader().loadAsync('/face.glb')
  const renderer = new THREE.WebGLRenderer({ antialias: true, preserveDrawingBuffer: true })
  renderer.setSize(SIDE, SIDE)
  renderer.setClearColor(0xffffff)
  const mesh = gltf.scene.getObjectByName('face'), lit = mesh.material
  const draw = async name => {
    renderer.render(gltf.scene, gltf.cameras[0])
    await send(name, await new Promise(done => renderer.domElement.toBlob(done)))
  }
  mesh.material = new THREE.MeshBasicMaterial({ map: lit.map, side: THREE.DoubleSide })
  await draw('albedo.png')
  mesh.material = lit
  const lamp = new THREE.DirectionalLight(0xffffff, 2.5)
  lamp.position.set(-0.6, 0.7, 0.8)
  gltf.scene.add(new THREE.AmbientLight(0xffffff, 0.8), lamp)
  await draw('lit.png')
  if (mesh.morphTargetInfluences) mesh.morphTargetInfluences[0] = 1
  await draw('expression.png')
  await send('end', JSON.stringify({ three: THREE.REVISION, expressions: mesh.morphTargetDictionary ?? {} }))
} catch (error) { await send('end', JSON.stringify({ error: String(error.stack ?? error) })) }
</script>""".replace("SIDE", str(SIDE))
CHROMIUM = ["--headless", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


class Handler(SimpleHTTPRequestHandler):
    """Serves the page, the GLB and the npm modules; keeps what the page sends."""

    def __init__(self, *arguments, glb: Path, modules: Path, output: Path, ended: Queue, **options):
        self.glb, self.modules, self.output, self.ended = glb, modules, output, ended
        super().__init__(*arguments, **options)

    def translate_path(self, path: str) -> str:
        return str(self.glb if path == "/face.glb" else self.modules / path.removeprefix("/modules/"))

    def do_GET(self) -> None:
        if self.path != "/":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE.encode())

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        name = self.path.removeprefix("/result/")
        if name in ("albedo.png", "lit.png", "expression.png"):
            (self.output / name).write_bytes(content)
        else:
            self.ended.put(json.loads(content))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments) -> None:
        return


def draw_in_three(glb: Path, modules: Path, output: Path, timeout: float = 300.0) -> dict:
    """Pictures of a GLB drawn by three.js in headless Chromium go to the folder; its version and expressions."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("error: chromium: not found; expected on the path. Install it.")
    ended: Queue = Queue()
    handler = partial(Handler, glb=glb.resolve(), modules=modules.resolve(), output=output, ended=ended)
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
    ):
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        command = [browser, *CHROMIUM, f"--user-data-dir={profile}", "--remote-debugging-port=0", address]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, start_new_session=True, **silent)
        try:
            return ended.get(timeout=timeout)
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # Debian's chromium is a script around others
            process.wait()
            server.shutdown()


def validate(glb: Path, modules: Path) -> dict:
    """The Khronos validator's report."""
    done = subprocess.run(["node", "-e", VALIDATE, glb, modules.resolve()], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def synthetic_face(camera: str, uv_size: tuple[int, int]) -> Reconstruction:
    """A face of the synthetic world as if a perfect fit had found it; in the picture of a centred camera."""
    template = embedded_template(uv_size)
    batch = SyntheticWorld(template, WorldConfig(camera=camera, occlusion=0.0), 224).sample(torch.tensor([5]))
    small = EncoderConfig(width=4, stages=4), DecoderConfig(width=4, up_samplings=4)
    model = FaceModel(ModelConfig(224, 8, 8, *small), template).eval()
    shape = model.surface.to_uv_map(batch.vertices - template.vertices)
    batch.camera.principal_point.fill_(112)
    return Reconstruction(
        photo=batch.image[0],
        crop=Crop(0.0, 0.0, 1.0, 224),
        model=model,
        face=Face(Latents(torch.zeros(1, 8), torch.zeros(1, 8)), batch.camera, batch.sh_coefficients),
        geometry=Geometry(UVMaps(shape, shape, batch.albedo, batch.albedo), batch.vertices, batch.vertices),
        losses={},
        start_error=0.0,
        final_error=0.0,
        model_error=0.0,
        seconds=0.0,
    )


def check(glb: Path, modules: Path, output: Path) -> None:
    """Print what the validator and three.js say of one file."""
    output.mkdir(parents=True, exist_ok=True)
    issues = validate(glb, modules)["issues"]
    counts = ", ".join(f"{issues[f'num{name}']} {name.lower()}" for name in ("Errors", "Warnings", "Infos", "Hints"))
    print(f"{glb.name}: {glb.stat().st_size} bytes; Khronos: {counts}")
    for message in issues["messages"][:5]:
        print(f"  {message['code']}: {message['message']} ({message.get('pointer')})")
    found = draw_in_three(glb, modules, output)
    if "error" in found:
        sys.exit(f"error: three.js: {found['error']}")
    print(f"  three.js r{found['three']}: {len(found['expressions'])} expressions; pictures in {output}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gltf", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("glb", type=Path, nargs="?", help="a file of your own (default: synthetic faces)")
    parser.add_argument("--modules", type=Path, required=True, help="node_modules with three and gltf-validator")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for files and pictures")
    options = parser.parse_args()
    if options.glb is not None:
        return check(options.glb, options.modules, options.output)
    for camera in ("weak_perspective", "perspective"):
        face, folder = synthetic_face(camera, (64, 80)), options.output / camera
        folder.mkdir(parents=True, exist_ok=True)
        check(face.save(folder / "face.glb"), options.modules, folder)
        ours, theirs = face.render(light="ambient", size=SIDE), read_image(folder / "albedo.png")
        difference = (ours - theirs).abs().mean(0)
        inside = ours.amin(0) < 1
        print(
            f"  {camera}, against our renderer: mean difference on the face {float(difference[inside].mean()):.4f}, "
            f"{100 * float((difference > 0.1).float().mean()):.2f} % of pixels differ by more than 0.1"
        )


if __name__ == "__main__":
    main()
