/* Drawing a box with the mouse, a pen or a finger on the picture of every .draw-box column of the demo page.
   The four number fields of the column, x0 y0 x1 y1 in pixels of the picture, hold the box: dragging fills them
   in, and the rectangle on the picture shows what they say, also if it was typed. */
(() => {
  const numbersOf = (column) => [...column.querySelectorAll(".box-number input")];

  /* Where the pixels of a picture are on the page: it is scaled to fit, its proportions kept. */
  function frameOf(image) {
    const area = image.getBoundingClientRect();
    const scale = Math.min(area.width / image.naturalWidth, area.height / image.naturalHeight);
    return {
      scale,
      left: area.left + (area.width - scale * image.naturalWidth) / 2,
      top: area.top + (area.height - scale * image.naturalHeight) / 2,
    };
  }

  function toPixels(image, event) {
    const frame = frameOf(image);
    const limit = (value, maximum) => Math.round(Math.min(Math.max(value / frame.scale, 0), maximum));
    return [
      limit(event.clientX - frame.left, image.naturalWidth),
      limit(event.clientY - frame.top, image.naturalHeight),
    ];
  }

  function fillIn(column, values) {
    numbersOf(column).forEach((input, i) => {
      input.value = values[i];
      input.dispatchEvent(new Event("input", { bubbles: true }));
    });
  }

  function showBox(column) {
    const image = column.querySelector(".box-picture img");
    let rectangle = column.querySelector(".box-rectangle");
    const values = numbersOf(column).map((input) => (input.value === "" ? NaN : Number(input.value)));
    const [x0, y0, x1, y1] = values;
    if (!image || !image.naturalWidth || !(x1 > x0 && y1 > y0)) {
      rectangle?.remove();
      return;
    }
    const picture = column.querySelector(".box-picture");
    if (!rectangle) {
      rectangle = document.createElement("div");
      rectangle.className = "box-rectangle";
      picture.append(rectangle);
    }
    const frame = frameOf(image);
    const outer = picture.getBoundingClientRect();
    rectangle.style.left = `${frame.left - outer.left - picture.clientLeft + x0 * frame.scale}px`;
    rectangle.style.top = `${frame.top - outer.top - picture.clientTop + y0 * frame.scale}px`;
    rectangle.style.width = `${(x1 - x0) * frame.scale}px`;
    rectangle.style.height = `${(y1 - y0) * frame.scale}px`;
  }

  let drag = null;
  document.addEventListener("pointerdown", (event) => {
    const image = event.button === 0 && event.target.closest?.(".draw-box .box-picture img");
    if (!image) return;
    event.preventDefault();
    drag = { image, column: image.closest(".draw-box"), start: toPixels(image, event), moved: false };
  });
  document.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const end = toPixels(drag.image, event);
    drag.moved = true;
    drag.values = [0, 1, 2, 3].map((i) => Math[i < 2 ? "min" : "max"](drag.start[i % 2], end[i % 2]));
    numbersOf(drag.column).forEach((input, i) => (input.value = drag.values[i]));
    showBox(drag.column);
  });
  const finish = () => {
    if (drag?.moved) fillIn(drag.column, drag.values);
    drag = null;
  };
  document.addEventListener("pointerup", finish);
  document.addEventListener("pointercancel", finish);
  document.addEventListener("dragstart", (event) => {
    if (event.target.closest?.(".draw-box .box-picture img")) event.preventDefault();
  });
  /* Typed numbers, new pictures, tabs and window sizes all move the rectangle: looking often is simplest. */
  setInterval(() => document.querySelectorAll(".draw-box").forEach(showBox), 150);
})();
